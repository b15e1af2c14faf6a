use std::sync::Arc;

use super::Lora;
use crate::cpu::{CpuOp, Ctx, Input, Lane, PackedMatrix, Packer, Prepared, activate, overlap};

struct Step {
    op: Lora,
    pairs: Vec<Pair>,
    input: Input,
    middles: Input,
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
    for pair in &op.pairs {
        let (down, up) = (packer.matrix(pair.down), packer.matrix(pair.up));
        let pair = Pair { down, up, middle_at: middle, out_at: out };
        middle += pair.down.n_out();
        out += pair.up.n_out();
        pairs.push(pair);
    }
    packer.need(|s| &mut s.shared_work, &[middle, packer.max_rows()]);
    let downs: Vec<_> = op.pairs.iter().map(|pair| (pair.x_at, pair.down)).collect();
    let ups: Vec<_> = op.pairs.iter().zip(&pairs).map(|(pair, at)| (at.middle_at, pair.up)).collect();
    let input = Input::sliced(op.x, &downs, packer);
    let middles = Input::of_work(middle, &ups, packer);
    Ok(Box::new(Step { op: op.clone(), pairs, input, middles, middle }))
}

impl CpuOp for Step {
    fn stages(&self, cx: &Ctx) -> usize {
        self.input.stages(cx) + 1 + self.middles.stages(cx) + 1
    }

    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        match stage.checked_sub(self.input.stages(cx)) {
            None => self.input.prepare(cx, lane),
            Some(0) => self.down(cx, lane),
            Some(stage) if stage <= self.middles.stages(cx) => self.middles.prepare(cx, lane),
            Some(_) => self.up(cx, lane),
        }
    }
}

impl Step {
    fn down(&self, cx: &Ctx, lane: &mut Lane) {
        let columns = lane.columns(self.middle);
        let x = self.input.view(cx, lane.normed, lane.row_words);
        for (i, (pair, Pair { down, middle_at, .. })) in self.op.pairs.iter().zip(&self.pairs).enumerate() {
            let part = overlap(&columns, *middle_at, down.n_out());
            down.for_products(cx.level, part, x.operand(i), &mut lane.tiles, |row, first, products| {
                activate(cx.level, pair.middle, products);
                let at = row * self.middle + middle_at + first;
                // SAFETY: these columns are this lane's.
                unsafe { cx.memory.work.slice_mut(at..at + products.len()) }.copy_from_slice(products);
            });
        }
    }

    fn up(&self, cx: &Ctx, lane: &mut Lane) {
        let columns = lane.columns(cx.program.buffer(self.op.out).width);
        let x = self.middles.view(cx, lane.normed, lane.row_words);
        for (i, (pair, Pair { up, out_at, .. })) in self.op.pairs.iter().zip(&self.pairs).enumerate() {
            let part = overlap(&columns, *out_at, up.n_out());
            let bias = pair.bias.map(|b| cx.vector(b));
            up.for_products(cx.level, part, x.operand(i), &mut lane.tiles, |row, first, products| {
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
