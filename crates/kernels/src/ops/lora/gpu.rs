use super::Lora;
use crate::backend::BackendError;
use crate::gpu::Recorder;
use crate::gpu::grouped::{self, Member, Side};
use crate::gpu::record::Beside;
use crate::ops::{Op, grouped_linear};

/// All downs, and then all ups, however many pairs there are. Where products of the same rows come before, the downs are part of
/// their dispatch.
pub(crate) fn record(op: &Lora, recorder: &mut Recorder) -> Result<(), BackendError> {
    let before = match recorder.neighbours() {
        [Some(Op::GroupedLinear(before)), _] => Some(before.clone()),
        _ => None,
    };
    let is_begun = match before {
        Some(before) => grouped_linear::gpu::takes_in(&before, op, recorder)?,
        None => false,
    };
    let (middle, downs) = downs(op, recorder, 0)?;
    let x = Side { rows: recorder.buf(op.x), width: recorder.width(op.x) };
    let beside = if is_begun { Beside::WithoutPrevious } else { Beside::Any };
    recorder.beside(beside, |recorder| grouped::record(recorder, "lora_down", x, &downs, &[middle]))?;
    let y = Side { rows: recorder.buf(op.out), width: recorder.width(op.out) };
    let mut ups = Vec::new();
    let mut y_at = 0;
    for (pair, down) in op.pairs.iter().zip(&downs) {
        let (x_at, weight, bias, activation) = (down.y_at, pair.up, pair.bias, pair.out);
        ups.push(Member { x_at, weight, side: 0, y_at, bias, activation });
        y_at += recorder.program.matrix(weight).n_out;
    }
    grouped::record(recorder, "lora_up", middle, &ups, &[y])
}

/// Where the middles lie, side by side, and how they are made as the outputs of a side.
pub(crate) fn downs(
    op: &Lora,
    recorder: &mut Recorder,
    side: usize,
) -> Result<(Side, Vec<Member>), BackendError> {
    let mut downs = Vec::new();
    let mut y_at = 0;
    for pair in &op.pairs {
        let (x_at, weight, activation) = (pair.x_at, pair.down, pair.middle);
        downs.push(Member { x_at, weight, side, y_at, bias: None, activation });
        y_at += recorder.program.matrix(weight).n_out;
    }
    let rows = recorder.common_scratch("lora", &[y_at, recorder.limits.rows])?;
    Ok((Side { rows, width: y_at }, downs))
}
