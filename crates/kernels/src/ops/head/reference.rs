use super::Head;
use crate::reference::{Cx, normalized, soft_capped};

pub(crate) fn run(op: &Head, cx: &mut Cx) {
    let wanted = cx.batch.logit_rows().to_vec();
    let x: Vec<Vec<f32>> =
        wanted.iter().map(|&row| normalized(&cx.program, &op.norm, &cx.row(op.x, row as usize))).collect();
    for (i, y) in cx.linear_all(op.weight, &x, None).iter().enumerate() {
        let logits: Vec<f32> = y.iter().map(|&v| soft_capped(op.soft_cap, v)).collect();
        cx.set_row(op.logits, i, &logits);
    }
}
