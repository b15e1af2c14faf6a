use super::NormLinear;
use crate::backend::BackendError;
use crate::gpu::Recorder;
use crate::gpu::linear::{self, Input, Output};
use crate::program::Rows;

pub(crate) fn record(op: &NormLinear, recorder: &mut Recorder) -> Result<(), BackendError> {
    let (x, y) = (recorder.buf(op.x), recorder.buf(op.out));
    let input = Input { rows: x, width: recorder.width(op.x), at: 0, norm: op.norm, of: Rows::Batch };
    let output =
        Output { bias: op.bias, activation: op.activation, ..Output::plain(y, recorder.width(op.out)) };
    linear::record(recorder, "norm_linear", input, op.weight, output)
}
