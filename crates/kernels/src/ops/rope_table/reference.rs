use super::RopeTable;
use crate::reference::Cx;

pub(crate) fn run(op: &RopeTable, cx: &mut Cx) {
    let inv_freq = cx.vector(op.inv_freq);
    for row in 0..cx.batch.rows() {
        // The angle is rounded to f32 before its cosine is taken, as the families' reference implementations do.
        let position = cx.batch.positions()[row] as f32;
        let angle = |f: &f32| f64::from(position * f);
        let magnitude = f64::from(op.magnitude);
        let cosines = inv_freq.iter().map(|f| (angle(f).cos() * magnitude) as f32);
        let sines = inv_freq.iter().map(|f| (angle(f).sin() * magnitude) as f32);
        let table: Vec<f32> = cosines.chain(sines).collect();
        cx.set_row(op.out, row, &table);
    }
}
