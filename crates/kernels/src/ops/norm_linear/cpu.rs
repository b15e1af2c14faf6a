use std::ops::Range;
use std::sync::Arc;

use super::NormLinear;
use crate::cpu::{
    CpuOp, Ctx, Input, Lane, Operand, PackedMatrix, Packer, Prepared, Tiles, activate, gate, tile,
};

struct Step {
    op: NormLinear,
    input: Input,
    weight: Arc<PackedMatrix>,
}

pub(crate) fn prepare(op: &NormLinear, packer: &mut Packer) -> Prepared {
    let input = Input::new(op.x, op.norm, &[op.weight], packer);
    Ok(Box::new(Step { op: op.clone(), input, weight: packer.matrix(op.weight) }))
}

impl CpuOp for Step {
    fn stages(&self, cx: &Ctx) -> usize {
        self.input.stages(cx) + 1
    }

    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        if stage < self.input.stages(cx) {
            return self.input.prepare(cx, lane);
        }
        let columns = lane.columns(cx.program.buffer(self.op.out).width);
        let x = self.input.view(cx, lane.normed, lane.row_words).operand(0);
        if self.op.activation.is_gated() {
            return self.gated(cx, columns, x, &mut lane.tiles);
        }
        let bias = self.op.bias.map(|b| cx.vector(b));
        self.weight.for_products(cx.level, columns, x, &mut lane.tiles, |row, first, products| {
            add(products, bias, first);
            activate(cx.level, self.op.activation, products);
            // SAFETY: these columns are this lane's.
            let out = unsafe { cx.columns(self.op.out, row, first..first + products.len()) };
            out.copy_from_slice(products);
        });
    }
}

impl Step {
    /// The gates of a few columns and the ups that belong to them, then what they make together.
    fn gated(&self, cx: &Ctx, columns: Range<usize>, x: Operand, tiles: &mut Tiles) {
        let half = self.weight.n_out() / 2;
        let bias = self.op.bias.map(|b| cx.vector(b));
        let width = tile(x.len());
        for first in columns.clone().step_by(width) {
            let part = first..(first + width).min(columns.end);
            let (n, ups_part) = (part.len(), part.start + half..part.end + half);
            let (gates, rest) = tiles.tile.split_at_mut(x.len() * n);
            let ups = &mut rest[..x.len() * n];
            self.weight.product(cx.level, part.clone(), x, tiles.whole, gates);
            self.weight.product(cx.level, ups_part, x, tiles.whole, ups);
            for (row, (gates, ups)) in gates.chunks_exact_mut(n).zip(ups.chunks_exact_mut(n)).enumerate() {
                add(gates, bias, first);
                add(ups, bias, first + half);
                // SAFETY: these columns are this lane's.
                let out = unsafe { cx.columns(self.op.out, row, part.clone()) };
                gate(cx.level, self.op.activation, gates, ups, out);
            }
        }
    }
}

fn add(products: &mut [f32], bias: Option<&[f32]>, first: usize) {
    if let Some(bias) = bias {
        products.iter_mut().zip(&bias[first..]).for_each(|(p, b)| *p += b);
    }
}
