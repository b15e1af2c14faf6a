use std::sync::Arc;

use super::GroupedLinear;
use crate::cpu::{CpuOp, Ctx, Input, Lane, PackedMatrix, Packer, Prepared, overlap};

struct Step {
    op: GroupedLinear,
    input: Input,
    /// Where each group's output begins, and its matrix.
    groups: Vec<(usize, Arc<PackedMatrix>)>,
}

pub(crate) fn prepare(op: &GroupedLinear, packer: &mut Packer) -> Prepared {
    let input = Input::sliced(op.x, &op.groups, packer);
    let mut groups = Vec::with_capacity(op.groups.len());
    let mut out_at = 0;
    for &(_, weight) in &op.groups {
        let weight = packer.matrix(weight);
        let n_out = weight.n_out();
        groups.push((out_at, weight));
        out_at += n_out;
    }
    Ok(Box::new(Step { op: op.clone(), input, groups }))
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
        let x = self.input.view(cx, lane.normed, lane.row_words);
        for (i, (out_at, weight)) in self.groups.iter().enumerate() {
            let part = overlap(&columns, *out_at, weight.n_out());
            weight.for_products(cx.level, part, x.operand(i), &mut lane.tiles, |row, first, products| {
                let first = out_at + first;
                // SAFETY: these columns are this lane's.
                let out = unsafe { cx.columns(self.op.out, row, first..first + products.len()) };
                out.copy_from_slice(products);
            });
        }
    }
}
