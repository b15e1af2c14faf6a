use super::GroupedLinear;
use crate::backend::BackendError;
use crate::gpu::Recorder;
use crate::gpu::grouped::{self, Member, Side};
use crate::gpu::record::Beside;
use crate::ops::{Activation, Op, lora};
use crate::program::MatId;

/// All groups in one dispatch. Where low-rank pairs of the same rows come next, it makes their middles, too.
pub(crate) fn record(op: &GroupedLinear, recorder: &mut Recorder) -> Result<(), BackendError> {
    let own = members(op, recorder);
    let x = Side { rows: recorder.buf(op.x), width: recorder.width(op.x) };
    let y = Side { rows: recorder.buf(op.out), width: recorder.width(op.out) };
    let next = match recorder.neighbours() {
        [_, Some(Op::Lora(next))] => Some(next.clone()),
        _ => None,
    };
    if let Some(next) = next
        && takes_in(op, &next, recorder)?
    {
        let (middle, downs) = lora::gpu::downs(&next, recorder, 1)?;
        let both = [own.as_slice(), &downs].concat();
        recorder.beside(Beside::WithNext, |recorder| {
            grouped::record(recorder, "grouped_linear", x, &both, &[y, middle])
        })?;
        return recorder.beside(Beside::WithoutNext, |recorder| {
            grouped::record(recorder, "grouped_linear", x, &own, &[y])
        });
    }
    grouped::record(recorder, "grouped_linear", x, &own, &[y])
}

fn members(op: &GroupedLinear, recorder: &Recorder) -> Vec<Member> {
    let mut y_at = 0;
    let mut members = Vec::new();
    for &(x_at, weight) in &op.groups {
        let (bias, activation) = (None, Activation::None);
        members.push(Member { x_at, weight, side: 0, y_at, bias, activation });
        y_at += recorder.program.matrix(weight).n_out;
    }
    members
}

/// Whether the pairs' first halves are part of this op's dispatch: their matrices lie with its own.
pub(crate) fn takes_in(
    op: &GroupedLinear,
    next: &lora::Lora,
    recorder: &mut Recorder,
) -> Result<bool, BackendError> {
    let downs = next.pairs.iter().map(|pair| pair.down);
    let ids: Vec<MatId> = op.groups.iter().map(|&(_, id)| id).chain(downs).collect();
    Ok(next.x == op.x && recorder.together(&ids)?.is_some())
}
