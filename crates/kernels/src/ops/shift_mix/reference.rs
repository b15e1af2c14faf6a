use super::ShiftMix;
use crate::ops::Norm;
use crate::program::{Buf, RecId};
use crate::reference::{Cx, normalized};

pub(crate) fn run(op: &ShiftMix, cx: &mut Cx) {
    let mix = cx.vector(op.mix);
    for (row, (now, before)) in normed_with_previous(cx, op.x, &op.norm, op.state).iter().enumerate() {
        let mixes = mix.chunks(now.len()).flat_map(|mix| shifted(now, before, mix));
        let out: Vec<f32> = mixes.collect();
        cx.set_row(op.out, row, &out);
    }
}

pub(crate) fn shifted(now: &[f32], before: &[f32], mix: &[f32]) -> Vec<f32> {
    now.iter().zip(before).zip(mix).map(|((&now, &before), &mix)| now + (before - now) * mix).collect()
}

/// Every row normed, with the normed row before it in its sequence; the state is moved on.
pub(crate) fn normed_with_previous(
    cx: &mut Cx,
    x: Buf,
    norm: &Norm,
    state: RecId,
) -> Vec<(Vec<f32>, Vec<f32>)> {
    let mut pairs = Vec::new();
    for span in cx.spans() {
        let mut before = cx.state(state, &span);
        for row in span.row_range() {
            let now = normalized(&cx.program, norm, &cx.row(x, row));
            pairs.push((now.clone(), before));
            before = now;
        }
        cx.set_state(state, &span, &before);
    }
    pairs
}
