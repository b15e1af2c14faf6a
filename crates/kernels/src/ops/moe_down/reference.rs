use super::MoeDown;
use crate::reference::Cx;

pub(crate) fn run(op: &MoeDown, cx: &mut Cx) {
    let width = cx.program.buffer(op.residual).width;
    for row in 0..cx.batch.rows() {
        let (hidden, routes) = (cx.row(op.hidden, row), cx.row(op.routes, row));
        let (experts, weights) = routes.split_at(op.top_k);
        let mut sum = vec![0.0f64; width];
        for (i, (expert, weight)) in experts.iter().map(|&e| e as usize).zip(weights).enumerate() {
            let per_expert = hidden.len() / op.top_k;
            let x = &hidden[i * per_expert..(i + 1) * per_expert];
            let y = cx.linear(op.down, expert * width..(expert + 1) * width, &[x], None).remove(0);
            sum.iter_mut().zip(&y).for_each(|(s, &y)| *s += f64::from(*weight) * f64::from(y));
        }
        let residual = cx.row(op.residual, row);
        let out: Vec<f32> = residual.iter().zip(&sum).map(|(&r, s)| (f64::from(r) + s) as f32).collect();
        cx.set_row(op.residual, row, &out);
    }
}
