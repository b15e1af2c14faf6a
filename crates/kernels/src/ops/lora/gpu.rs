use super::Lora;
use crate::backend::BackendError;
use crate::gpu::Recorder;
use crate::gpu::linear::{self, Input, Output};
use crate::program::Rows;

pub(crate) fn record(op: &Lora, recorder: &mut Recorder) -> Result<(), BackendError> {
    let (x, y, width) = (recorder.buf(op.x), recorder.buf(op.out), recorder.width(op.out));
    let mut at = 0;
    for pair in &op.pairs {
        let (rank, n_out) =
            (recorder.program.matrix(pair.down).n_out, recorder.program.matrix(pair.up).n_out);
        let middle = recorder.scratch(rank)?;
        let input =
            Input { rows: x, width: recorder.width(op.x), at: pair.x_at, norm: None, of: Rows::Batch };
        let down = Output { activation: pair.middle, ..Output::plain(middle, rank) };
        linear::record(recorder, "lora_down", input, pair.down, down)?;
        let input = Input { rows: middle, width: rank, at: 0, norm: None, of: Rows::Batch };
        let up = Output { at, bias: pair.bias, activation: pair.out, ..Output::plain(y, width) };
        linear::record(recorder, "lora_up", input, pair.up, up)?;
        at += n_out;
    }
    Ok(())
}
