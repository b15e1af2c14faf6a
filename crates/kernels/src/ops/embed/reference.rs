use super::Embed;
use crate::reference::{Cx, normalized};

pub(crate) fn run(op: &Embed, cx: &mut Cx) {
    let width = cx.program.buffer(op.out).width;
    for row in 0..cx.batch.rows() {
        let mut x = vec![0.0; width];
        cx.program.matrix(op.table).decode_row(cx.batch.tokens()[row] as usize, &mut x);
        x.iter_mut().for_each(|v| *v *= op.scale);
        if let Some(positions) = op.positions {
            let mut position = vec![0.0; width];
            cx.program.matrix(positions).decode_row(cx.batch.positions()[row] as usize, &mut position);
            x.iter_mut().zip(&position).for_each(|(v, p)| *v += p);
        }
        if let Some(norm) = &op.norm {
            x = normalized(&cx.program, norm, &x);
        }
        cx.set_row(op.out, row, &x);
    }
}
