use std::sync::Arc;

use super::Head;
use crate::cpu::{CpuOp, Ctx, Input, Lane, PackedMatrix, Packer, Prepared, soft_cap};

struct Step {
    op: Head,
    input: Input,
    weight: Arc<PackedMatrix>,
}

pub(crate) fn prepare(op: &Head, packer: &mut Packer) -> Prepared {
    let input = Input::of_logit_rows(op.x, op.norm, op.weight, packer);
    Ok(Box::new(Step { op: op.clone(), input, weight: packer.matrix(op.weight) }))
}

impl CpuOp for Step {
    fn stages(&self, cx: &Ctx) -> usize {
        if cx.batch.logit_rows().is_empty() { 0 } else { self.input.stages(cx) + 1 }
    }

    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        if stage < self.input.stages(cx) {
            return self.input.prepare(cx, lane);
        }
        let columns = lane.columns(self.weight.n_out());
        let x = self.input.view(cx, lane.normed, lane.row_words).operand(0);
        self.weight.for_products(cx.level, columns, x, &mut lane.tiles, |row, first, products| {
            soft_cap(cx.level, self.op.soft_cap, products);
            // SAFETY: these columns are this lane's.
            let out = unsafe { cx.columns(self.op.logits, row, first..first + products.len()) };
            out.copy_from_slice(products);
        });
    }
}
