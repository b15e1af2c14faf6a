use super::MoeRoute;
use crate::reference::{Cx, normalized};

pub(crate) fn run(op: &MoeRoute, cx: &mut Cx) {
    let x: Vec<_> = cx.rows(op.x).iter().map(|row| normalized(&cx.program, &op.norm, row)).collect();
    for (row, scores) in cx.scores(op.router, &x).iter().enumerate() {
        cx.set_row(op.normed, row, &x[row]);
        cx.set_row(op.routes, row, &routes(scores, op.top_k, op.renormalize));
    }
}

/// The best experts' numbers, then their softmax weights.
fn routes(scores: &[f32], top_k: usize, renormalize: bool) -> Vec<f32> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = scores.iter().map(|&s| f64::from(s - max).exp()).collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let chosen = &order[..top_k];
    let total: f64 = match renormalize {
        true => chosen.iter().map(|&e| exps[e]).sum(),
        false => exps.iter().sum(),
    };
    let numbers = chosen.iter().map(|&e| e as f32);
    numbers.chain(chosen.iter().map(|&e| (exps[e] / total) as f32)).collect()
}
