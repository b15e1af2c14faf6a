use super::Lora;
use crate::reference::{Cx, activate};

pub(crate) fn run(op: &Lora, cx: &mut Cx) {
    let x = cx.rows(op.x);
    let mut out = vec![Vec::new(); x.len()];
    for pair in &op.pairs {
        let n_in = cx.program.matrix(pair.down).n_in;
        let inputs: Vec<Vec<f32>> = x.iter().map(|row| row[pair.x_at..pair.x_at + n_in].to_vec()).collect();
        let mut middle = cx.linear_all(pair.down, &inputs, None);
        middle.iter_mut().flatten().for_each(|v| *v = activate(pair.middle, *v));
        for (out, y) in out.iter_mut().zip(cx.linear_all(pair.up, &middle, pair.bias)) {
            out.extend(y.iter().map(|&v| activate(pair.out, v)));
        }
    }
    out.iter().enumerate().for_each(|(row, out)| cx.set_row(op.out, row, out));
}
