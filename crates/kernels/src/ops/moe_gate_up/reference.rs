use super::MoeGateUp;
use crate::reference::{Cx, gated};

pub(crate) fn run(op: &MoeGateUp, cx: &mut Cx) {
    let hidden = op.hidden(&cx.program);
    for row in 0..cx.batch.rows() {
        let (x, routes) = (cx.row(op.normed, row), cx.row(op.routes, row));
        let mut out = Vec::new();
        for expert in routes[..op.top_k].iter().map(|&e| e as usize) {
            let rows = expert * hidden..(expert + 1) * hidden;
            let gates = cx.linear(op.gate, rows.clone(), &[&x], None).remove(0);
            let ups = cx.linear(op.up, rows, &[&x], None).remove(0);
            out.extend(gates.iter().zip(&ups).map(|(&g, &u)| gated(op.activation, g, u)));
        }
        cx.set_row(op.out, row, &out);
    }
}
