use super::ChannelMix;
use crate::backend::BackendError;
use crate::gpu::Recorder;
use crate::gpu::linear::{self, Input, Output};
use crate::ops::{Activation, shift_mix};
use crate::program::Rows;

pub(crate) fn record(op: &ChannelMix, recorder: &mut Recorder) -> Result<(), BackendError> {
    let (width, y) = (recorder.width(op.x), recorder.buf(op.out));
    let mixed = recorder.scratch(width)?;
    shift_mix::gpu::mixed(recorder, op.x, &op.norm, (op.mix, 1), op.state, mixed);
    let input = Input { rows: mixed, width, at: 0, norm: None, of: Rows::Batch };
    let output = Output { activation: Activation::SquaredRelu, ..Output::plain(y, recorder.width(op.out)) };
    linear::record(recorder, "channel_mix", input, op.weight, output)
}
