use super::{QkRopeWrite, Rope, RopeStyle};
use crate::ops::Norm;
use crate::reference::{Cx, normalized};

pub(crate) fn run(op: &QkRopeWrite, cx: &mut Cx) {
    let layer = op.layer(&cx.program);
    let (dim, kv_heads) = (layer.head_dim, layer.kv_heads);
    for row in 0..cx.batch.rows() {
        let mut qkv = cx.row(op.qkv, row);
        let (q, kv) = qkv.split_at_mut(op.heads * dim);
        let (k, v) = kv.split_at_mut(kv_heads * dim);
        q.chunks_mut(dim).for_each(|head| normed_and_rotated(cx, row, op.q_norm, op.rope, head));
        k.chunks_mut(dim).for_each(|head| normed_and_rotated(cx, row, op.k_norm, op.rope, head));
        let (span, position) = (*cx.batch.span_of(row), cx.batch.positions()[row] as usize);
        for (head, (k, v)) in k.chunks(dim).zip(v.chunks(dim)).enumerate() {
            cx.set_kv(op.kv, &span, position, head, k, v);
        }
        cx.set_row(op.qkv, row, &qkv);
    }
}

fn normed_and_rotated(cx: &Cx, row: usize, norm: Option<Norm>, rope: Option<Rope>, head: &mut [f32]) {
    if let Some(norm) = norm {
        head.copy_from_slice(&normalized(&cx.program, &norm, head));
    }
    if let Some(rope) = rope {
        let table = cx.row(rope.table, row);
        let (cosines, sines) = table.split_at(table.len() / 2);
        for (i, (cos, sin)) in cosines.iter().zip(sines).enumerate() {
            let (a, b) = match rope.style {
                RopeStyle::Halves => (i, i + cosines.len()),
                RopeStyle::Pairs => (2 * i, 2 * i + 1),
            };
            let (x, y) = (head[a], head[b]);
            (head[a], head[b]) = (x * cos - y * sin, x * sin + y * cos);
        }
    }
}
