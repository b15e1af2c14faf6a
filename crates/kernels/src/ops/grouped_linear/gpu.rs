use super::GroupedLinear;
use crate::backend::BackendError;
use crate::gpu::Recorder;
use crate::gpu::linear::{self, Input, Output};
use crate::program::Rows;

pub(crate) fn record(op: &GroupedLinear, recorder: &mut Recorder) -> Result<(), BackendError> {
    let (x, y, width) = (recorder.buf(op.x), recorder.buf(op.out), recorder.width(op.out));
    let mut at = 0;
    for &(x_at, weight) in &op.groups {
        let input = Input { rows: x, width: recorder.width(op.x), at: x_at, norm: None, of: Rows::Batch };
        linear::record(recorder, "grouped_linear", input, weight, Output { at, ..Output::plain(y, width) })?;
        at += recorder.program.matrix(weight).n_out;
    }
    Ok(())
}
