use super::{RopeTable, angles};
use crate::reference::Cx;

pub(crate) fn run(op: &RopeTable, cx: &mut Cx) {
    let inv_freq = cx.vector(op.inv_freq);
    for row in 0..cx.batch.rows() {
        let table: Vec<f32> = angles(&inv_freq, op.magnitude, cx.batch.positions()[row]).collect();
        cx.set_row(op.out, row, &table);
    }
}
