use super::NormLinear;
use crate::ops::Activation;
use crate::reference::{Cx, activate, gated, normalized};

pub(crate) fn run(op: &NormLinear, cx: &mut Cx) {
    let mut x = cx.rows(op.x);
    if let Some(norm) = &op.norm {
        x = x.iter().map(|row| normalized(&cx.program, norm, row)).collect();
    }
    for (row, y) in cx.linear_all(op.weight, &x, op.bias).iter().enumerate() {
        cx.set_row(op.out, row, &activated(op.activation, y));
    }
}

/// The outputs after their activation; a gated one reads gates from the first half and ups from the second.
pub(crate) fn activated(activation: Activation, y: &[f32]) -> Vec<f32> {
    if activation.is_gated() {
        let (gates, ups) = y.split_at(y.len() / 2);
        return gates.iter().zip(ups).map(|(&g, &u)| gated(activation, g, u)).collect();
    }
    y.iter().map(|&v| activate(activation, v)).collect()
}
