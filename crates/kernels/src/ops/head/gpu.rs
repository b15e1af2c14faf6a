use super::Head;
use crate::backend::BackendError;
use crate::gpu::Recorder;
use crate::gpu::linear::{self, Input, Output};
use crate::program::Rows;

pub(crate) fn record(op: &Head, recorder: &mut Recorder) -> Result<(), BackendError> {
    let (x, y) = (recorder.buf(op.x), recorder.buf(op.logits));
    let input = Input { rows: x, width: recorder.width(op.x), at: 0, norm: Some(op.norm), of: Rows::Logits };
    let output = Output { soft_cap: op.soft_cap, ..Output::plain(y, recorder.width(op.logits)) };
    linear::record(recorder, "head", input, op.weight, output)
}
