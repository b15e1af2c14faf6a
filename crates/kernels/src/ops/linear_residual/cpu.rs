use std::sync::Arc;

use super::LinearResidual;
use crate::cpu::{CpuOp, Ctx, Input, Lane, PackedMatrix, Packer, Prepared, normalize};

struct Step {
    op: LinearResidual,
    input: Input,
    weight: Arc<PackedMatrix>,
}

pub(crate) fn prepare(op: &LinearResidual, packer: &mut Packer) -> Prepared {
    let input = Input::new(op.x, None, &[op.weight], packer);
    let weight = packer.matrix(op.weight);
    if op.post_norm.is_some() {
        packer.need(|s| &mut s.shared_work, &[weight.n_out(), packer.max_rows()]);
        packer.need(|s| &mut s.normed, &[weight.n_out()]);
    }
    Ok(Box::new(Step { op: op.clone(), input, weight }))
}

impl CpuOp for Step {
    fn stages(&self, cx: &Ctx) -> usize {
        self.input.stages(cx) + 1 + usize::from(self.op.post_norm.is_some())
    }

    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        match stage.checked_sub(self.input.stages(cx)) {
            None => self.input.prepare(cx, lane),
            Some(0) => self.project(cx, lane),
            Some(_) => self.add_normed(cx, lane),
        }
    }
}

impl Step {
    fn project(&self, cx: &Ctx, lane: &mut Lane) {
        let width = self.weight.n_out();
        let bias = self.op.bias.map(|b| cx.vector(b));
        let columns = lane.columns(width);
        let x = self.input.view(cx, lane.normed, lane.row_words).operand(0);
        self.weight.for_products(cx.level, columns, x, &mut lane.tiles, |row, first, products| {
            if let Some(bias) = bias {
                products.iter_mut().zip(&bias[first..]).for_each(|(p, b)| *p += b);
            }
            let part = first..first + products.len();
            if self.op.post_norm.is_some() {
                let at = row * width;
                // SAFETY: these columns are this lane's.
                let out = unsafe { cx.memory.work.slice_mut(at + part.start..at + part.end) };
                return out.copy_from_slice(products);
            }
            // SAFETY: these columns are this lane's.
            let residual = unsafe { cx.columns(self.op.residual, row, part) };
            residual.iter_mut().zip(products).for_each(|(r, p)| *r += *p);
        });
    }

    fn add_normed(&self, cx: &Ctx, lane: &mut Lane) {
        let (Some(norm), width) = (&self.op.post_norm, self.weight.n_out()) else { return };
        for row in lane.items(cx.batch.rows()) {
            // SAFETY: written in the stage before.
            let y = unsafe { cx.memory.work.slice(row * width..(row + 1) * width) };
            let normed = &mut lane.normed[..width];
            normalize(cx.level, cx.program, norm, y, normed);
            // SAFETY: each row is written by one lane.
            let residual = unsafe { cx.row_mut(self.op.residual, row) };
            residual.iter_mut().zip(normed).for_each(|(r, y)| *r += *y);
        }
    }
}
