use std::sync::Arc;

use super::{Lora, LoraPair};
use crate::cpu::{CpuOp, Ctx, InputRows, Lane, PackedMatrix, Packer, Prepared, activate, overlap};

struct Step {
    op: Lora,
    pairs: Vec<Pair>,
    /// Width of all pairs' middles together.
    middle: usize,
}

struct Pair {
    down: Arc<PackedMatrix>,
    up: Arc<PackedMatrix>,
    /// Where its middle and its output begin.
    middle_at: usize,
    out_at: usize,
}

pub(crate) fn prepare(op: &Lora, packer: &mut Packer) -> Prepared {
    let mut pairs = Vec::with_capacity(op.pairs.len());
    let (mut middle, mut out) = (0, 0);
    for LoraPair { down, up, .. } in &op.pairs {
        let pair =
            Pair { down: packer.matrix(*down)?, up: packer.matrix(*up)?, middle_at: middle, out_at: out };
        middle += pair.down.n_out();
        out += pair.up.n_out();
        pairs.push(pair);
    }
    packer.need(|s| &mut s.shared_work, &[middle, packer.max_rows()]);
    Ok(Box::new(Step { op: op.clone(), pairs, middle }))
}

impl CpuOp for Step {
    fn stages(&self, _cx: &Ctx) -> usize {
        2
    }

    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        if stage == 0 { self.down(cx, lane) } else { self.up(cx, lane) }
    }
}

impl Step {
    fn down(&self, cx: &Ctx, lane: &mut Lane) {
        // SAFETY: the op does not write its input.
        let x = unsafe { cx.rows(self.op.x) };
        let columns = lane.columns(self.middle);
        for (pair, Pair { down, middle_at, .. }) in self.op.pairs.iter().zip(&self.pairs) {
            let part = overlap(&columns, *middle_at, down.n_out());
            let x = x.columns(pair.x_at, down.n_in());
            down.for_products(cx.level, part, x, &mut lane.tiles, |row, first, products| {
                activate(cx.level, pair.middle, products);
                let at = row * self.middle + middle_at + first;
                // SAFETY: these columns are this lane's.
                unsafe { cx.memory.work.slice_mut(at..at + products.len()) }.copy_from_slice(products);
            });
        }
    }

    fn up(&self, cx: &Ctx, lane: &mut Lane) {
        let rows = cx.batch.rows();
        // SAFETY: written in the stage before.
        let middle = unsafe { cx.memory.work.slice(0..rows * self.middle) };
        let middle = InputRows::new(middle, self.middle, self.middle, rows);
        let columns = lane.columns(cx.program.buffer(self.op.out).width);
        for (pair, Pair { up, middle_at, out_at, .. }) in self.op.pairs.iter().zip(&self.pairs) {
            let part = overlap(&columns, *out_at, up.n_out());
            let bias = pair.bias.map(|b| cx.vector(b));
            let x = middle.columns(*middle_at, up.n_in());
            up.for_products(cx.level, part, x, &mut lane.tiles, |row, first, products| {
                if let Some(bias) = bias {
                    products.iter_mut().zip(&bias[first..]).for_each(|(p, b)| *p += b);
                }
                activate(cx.level, pair.out, products);
                let first = out_at + first;
                // SAFETY: these columns are this lane's.
                let out = unsafe { cx.columns(self.op.out, row, first..first + products.len()) };
                out.copy_from_slice(products);
            });
        }
    }
}
