use super::{QkRopeWrite, Rope, RopeStyle};
use crate::cpu::{CpuOp, Ctx, Lane, Packer, Part, Prepared, normalize};
use crate::ops::Norm;

pub(crate) fn prepare(op: &QkRopeWrite, packer: &mut Packer) -> Prepared {
    packer.need(|s| &mut s.work, &[op.layer(packer.program).head_dim]);
    Ok(Box::new(op.clone()))
}

impl CpuOp for QkRopeWrite {
    fn stages(&self, _cx: &Ctx) -> usize {
        1
    }

    /// An item is one head of Q, K or V of one row.
    fn run(&self, _stage: usize, cx: &Ctx, lane: &mut Lane) {
        let layer = self.layer(cx.program);
        let heads = self.heads + 2 * layer.kv_heads;
        for item in lane.items(cx.batch.rows() * heads) {
            let (row, head) = (item / heads, item % heads);
            // SAFETY: each head of a row is one lane's.
            let values =
                unsafe { cx.columns(self.qkv, row, head * layer.head_dim..(head + 1) * layer.head_dim) };
            if head < self.heads {
                norm_and_rotate(cx, row, self.q_norm, self.rope, values, lane);
                continue;
            }
            let kv_head = head - self.heads;
            let (span, position) = (cx.batch.span_of(row), cx.batch.positions()[row] as usize);
            if kv_head < layer.kv_heads {
                norm_and_rotate(cx, row, self.k_norm, self.rope, values, lane);
                let at = cx.kv_at(self.kv, span, position, kv_head);
                // SAFETY: each head of a position is written by one lane, that of its row.
                unsafe { cx.memory.keys[self.kv.0 as usize].store(at, values) };
            } else {
                let at = cx.kv_at(self.kv, span, position, kv_head - layer.kv_heads);
                // SAFETY: as above.
                unsafe { cx.memory.values[self.kv.0 as usize].store(at, values) };
            }
            lane.clock.lap(Part::Main);
        }
    }
}

fn norm_and_rotate(
    cx: &Ctx,
    row: usize,
    norm: Option<Norm>,
    rope: Option<Rope>,
    head: &mut [f32],
    lane: &mut Lane,
) {
    if let Some(norm) = norm {
        let before = &mut lane.work[..head.len()];
        before.copy_from_slice(head);
        normalize(cx.level, cx.program, &norm, before, head);
        lane.clock.lap(Part::QkNorm);
    }
    let Some(rope) = rope else { return };
    // SAFETY: the op does not write the table.
    let table = unsafe { cx.rows(rope.table) }.row(row);
    let (cosines, sines) = table.split_at(table.len() / 2);
    let n = cosines.len();
    let rotate = |x: &mut f32, y: &mut f32, (cos, sin): (&f32, &f32)| {
        (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
    };
    match rope.style {
        RopeStyle::Halves => {
            let (first, second) = head.split_at_mut(n);
            for ((x, y), angle) in first.iter_mut().zip(second).zip(cosines.iter().zip(sines)) {
                rotate(x, y, angle);
            }
        }
        RopeStyle::Pairs => {
            for ([x, y], angle) in head.as_chunks_mut().0.iter_mut().zip(cosines.iter().zip(sines)) {
                rotate(x, y, angle);
            }
        }
    }
    lane.clock.lap(Part::Rope);
}
