use super::LinearResidual;
use crate::reference::{Cx, normalized};

pub(crate) fn run(op: &LinearResidual, cx: &mut Cx) {
    let x = cx.rows(op.x);
    for (row, mut y) in cx.linear_all(op.weight, &x, op.bias).into_iter().enumerate() {
        if let Some(norm) = &op.post_norm {
            y = normalized(&cx.program, norm, &y);
        }
        let sum: Vec<f32> = cx.row(op.residual, row).iter().zip(&y).map(|(r, y)| r + y).collect();
        cx.set_row(op.residual, row, &sum);
    }
}
