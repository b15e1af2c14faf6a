use super::Attention;
use crate::reference::{Cx, soft_capped};

pub(crate) fn run(op: &Attention, cx: &mut Cx) {
    let layer = op.layer(&cx.program);
    let sinks = op.sinks.map(|s| cx.vector(s));
    for row in 0..cx.batch.rows() {
        let q = cx.row(op.qkv, row);
        let mut out = Vec::new();
        for head in 0..op.heads {
            let q = &q[head * layer.head_dim..(head + 1) * layer.head_dim];
            let kv_head = head * layer.kv_heads / op.heads;
            out.extend(one_head(op, cx, row, q, kv_head, sinks.as_ref().map(|s| s[head])));
        }
        cx.set_row(op.out, row, &out);
    }
}

fn one_head(op: &Attention, cx: &Cx, row: usize, q: &[f32], kv_head: usize, sink: Option<f32>) -> Vec<f32> {
    let (span, position) = (cx.batch.span_of(row), cx.batch.positions()[row] as usize);
    let seen = op.first_seen(position)..position + 1;
    let score = |p| {
        let k = cx.key(op.kv, span, p, kv_head);
        let dot: f64 = q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
        f64::from(soft_capped(op.soft_cap, (dot * f64::from(op.scale)) as f32))
    };
    let scores: Vec<f64> = seen.clone().map(score).collect();
    let sink = sink.map_or(f64::NEG_INFINITY, f64::from);
    let max = scores.iter().copied().fold(sink, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let total: f64 = weights.iter().sum::<f64>() + (sink - max).exp();
    let mut out = vec![0.0f64; q.len()];
    for (p, weight) in seen.zip(&weights) {
        let v = cx.value(op.kv, span, p, kv_head);
        out.iter_mut().zip(v).for_each(|(o, &v)| *o += weight * f64::from(v));
    }
    out.iter().map(|o| (o / total) as f32).collect()
}
