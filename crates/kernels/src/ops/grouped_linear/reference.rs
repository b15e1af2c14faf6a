use super::GroupedLinear;
use crate::reference::Cx;

pub(crate) fn run(op: &GroupedLinear, cx: &mut Cx) {
    let x = cx.rows(op.x);
    let mut out = vec![Vec::new(); x.len()];
    for &(at, weight) in &op.groups {
        let n_in = cx.program.matrix(weight).n_in;
        let inputs: Vec<Vec<f32>> = x.iter().map(|row| row[at..at + n_in].to_vec()).collect();
        for (out, y) in out.iter_mut().zip(cx.linear_all(weight, &inputs, None)) {
            out.extend(y);
        }
    }
    out.iter().enumerate().for_each(|(row, out)| cx.set_row(op.out, row, out));
}
