use super::{DECAY, TimeMix};
use crate::reference::{Cx, sigmoid};

/// One head's slices of a row.
struct Head<'a> {
    r: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    w: &'a [f32],
    a: &'a [f32],
    g: &'a [f32],
    k_k: &'a [f32],
    k_a: &'a [f32],
    r_k: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f64,
}

pub(crate) fn run(op: &TimeMix, cx: &mut Cx) {
    let width = cx.program.buffer(op.out).width;
    let size = width / op.heads;
    let (k_k, k_a, r_k) = (cx.vector(op.k_k), cx.vector(op.k_a), cx.vector(op.r_k));
    let (weight, bias) = (cx.vector(op.norm.weight), op.norm.bias.map(|b| cx.vector(b)));
    for span in cx.spans() {
        let mut state = cx.state(op.state, &span);
        for row in span.row_range() {
            let (rkv, wagv) = (cx.row(op.rkv, row), cx.row(op.wagv, row));
            let v = values(op, cx, row, &rkv[2 * width..], &wagv);
            let mut out = Vec::new();
            for head in 0..op.heads {
                let at = head * size..(head + 1) * size;
                let head = Head {
                    r: &rkv[at.clone()],
                    k: &rkv[width..][at.clone()],
                    v: &v[at.clone()],
                    w: &wagv[at.clone()],
                    a: &wagv[width..][at.clone()],
                    g: &wagv[2 * width..][at.clone()],
                    k_k: &k_k[at.clone()],
                    k_a: &k_a[at.clone()],
                    r_k: &r_k[at.clone()],
                    weight: &weight[at.clone()],
                    bias: bias.as_ref().map(|b| &b[at.clone()]),
                    eps: f64::from(op.norm.eps),
                };
                let matrix = at.start * size..at.end * size;
                out.extend(one_head(&head, &mut state[matrix]));
            }
            cx.set_row(op.out, row, &out);
        }
        cx.set_state(op.state, &span, &state);
    }
}

/// The row's values after mixing with the first layer's; the first layer keeps its own.
fn values(op: &TimeMix, cx: &mut Cx, row: usize, v: &[f32], wagv: &[f32]) -> Vec<f32> {
    if op.is_first_layer {
        cx.set_row(op.v_first, row, v);
        return v.to_vec();
    }
    let (first, mix) = (cx.row(op.v_first, row), &wagv[3 * v.len()..]);
    v.iter().zip(&first).zip(mix).map(|((&v, &first), &mix)| v + (first - v) * mix).collect()
}

/// The state is rounded to f32 after every row, so that it does not matter where a prompt is cut.
fn one_head(h: &Head, state: &mut [f32]) -> Vec<f32> {
    let n = h.r.len();
    let kk: Vec<f64> = (0..n).map(|i| f64::from(h.k[i]) * f64::from(h.k_k[i])).collect();
    let length = kk.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
    let kk: Vec<f64> = kk.iter().map(|v| v / length).collect();
    let k: Vec<f64> =
        (0..n).map(|i| f64::from(h.k[i]) * (1.0 + (f64::from(h.a[i]) - 1.0) * f64::from(h.k_a[i]))).collect();
    let decay: Vec<f64> = (0..n).map(|i| (f64::from(DECAY) * f64::from(sigmoid(h.w[i]))).exp()).collect();
    let mut y = vec![0.0f64; n];
    for (value, line) in state.chunks_mut(n).enumerate() {
        let removed: f64 = line.iter().zip(&kk).map(|(&s, kk)| f64::from(s) * kk).sum();
        for key in 0..n {
            let replaced = -removed * kk[key] * f64::from(h.a[key]);
            let kept = f64::from(line[key]) * decay[key];
            line[key] = (kept + replaced + f64::from(h.v[value]) * k[key]) as f32;
            y[value] += f64::from(line[key]) * f64::from(h.r[key]);
        }
    }
    let mean = y.iter().sum::<f64>() / n as f64;
    let variance = y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / n as f64;
    let scale = 1.0 / (variance + h.eps).sqrt();
    let bonus: f64 = (0..n).map(|i| f64::from(h.r[i]) * k[i] * f64::from(h.r_k[i])).sum();
    let out = |i: usize| {
        let normed = (y[i] - mean) * scale * f64::from(h.weight[i]) + h.bias.map_or(0.0, |b| f64::from(b[i]));
        ((normed + bonus * f64::from(h.v[i])) * f64::from(h.g[i])) as f32
    };
    (0..n).map(out).collect()
}
