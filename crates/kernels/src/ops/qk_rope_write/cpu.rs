use super::{QkRopeWrite, Rope, RopeStyle};
use crate::batch::BLOCK;
use crate::cpu::{CpuOp, Ctx, Isa, Kernel, Lane, Packer, Part, Prepared, normalize};
use crate::ops::Norm;

pub(crate) fn prepare(op: &QkRopeWrite, packer: &mut Packer) -> Prepared {
    packer.need(|s| &mut s.work, &[op.layer(packer.program).head_dim]);
    Ok(Box::new(op.clone()))
}

impl CpuOp for QkRopeWrite {
    fn stages(&self, _cx: &Ctx) -> usize {
        1
    }

    fn run(&self, _stage: usize, cx: &Ctx, lane: &mut Lane) {
        cx.level.run(Heads { op: self, cx, lane });
    }
}

/// A lane's items, each of which is one head of Q, K or V of one row.
struct Heads<'a, 'b> {
    op: &'a QkRopeWrite,
    cx: &'a Ctx<'a>,
    lane: &'a mut Lane<'b>,
}

impl Kernel for Heads<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Heads { op, cx, lane } = self;
        let layer = op.layer(cx.program);
        let (dim, kv) = (layer.head_dim, op.kv.0 as usize);
        let heads = op.heads + 2 * layer.kv_heads;
        for item in lane.items(cx.batch.rows() * heads) {
            let (row, head) = (item / heads, item % heads);
            // SAFETY: each head of a row is one lane's.
            let vector = unsafe { cx.columns(op.qkv, row, head * dim..(head + 1) * dim) };
            if head < op.heads {
                norm_and_rotate(cx, row, op.q_norm, op.rope, vector, lane);
                continue;
            }
            let kv_head = head - op.heads;
            let position = cx.batch.positions()[row] as usize;
            let block = cx.block_of(cx.batch.span_of(row), position);
            if kv_head < layer.kv_heads {
                norm_and_rotate(cx, row, op.k_norm, op.rope, vector, lane);
                // SAFETY: each head of a position is written by one lane, that of its row.
                unsafe { cx.memory.keys[kv].store(isa, block, kv_head, position % BLOCK, vector) };
            } else {
                let kv_head = kv_head - layer.kv_heads;
                // SAFETY: as above.
                unsafe { cx.memory.values[kv].store(isa, block, kv_head, position % BLOCK, vector) };
            }
            lane.clock.lap(Part::Main);
        }
    }
}

#[inline(always)]
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
    let angles = cosines.iter().zip(sines);
    match rope.style {
        RopeStyle::Halves => {
            let (first, second) = head.split_at_mut(cosines.len());
            for ((x, y), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
        RopeStyle::Pairs => {
            for ([x, y], (cos, sin)) in head.as_chunks_mut().0.iter_mut().zip(angles) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
    }
    lane.clock.lap(Part::Rope);
}
