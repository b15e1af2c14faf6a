use std::sync::Arc;

use super::GroupedLinear;
use crate::cpu::{CpuOp, Ctx, Lane, PackedMatrix, Packer, Prepared, overlap};

struct Step {
    op: GroupedLinear,
    /// Where each group's input and output begin, and its matrix.
    groups: Vec<(usize, usize, Arc<PackedMatrix>)>,
}

pub(crate) fn prepare(op: &GroupedLinear, packer: &mut Packer) -> Prepared {
    let mut groups = Vec::with_capacity(op.groups.len());
    let mut out_at = 0;
    for &(x_at, weight) in &op.groups {
        let weight = packer.matrix(weight)?;
        let n_out = weight.n_out();
        groups.push((x_at, out_at, weight));
        out_at += n_out;
    }
    Ok(Box::new(Step { op: op.clone(), groups }))
}

impl CpuOp for Step {
    fn stages(&self, _cx: &Ctx) -> usize {
        1
    }

    fn run(&self, _stage: usize, cx: &Ctx, lane: &mut Lane) {
        // SAFETY: the op does not write its input.
        let x = unsafe { cx.rows(self.op.x) };
        let columns = lane.columns(cx.program.buffer(self.op.out).width);
        for (x_at, out_at, weight) in &self.groups {
            let part = overlap(&columns, *out_at, weight.n_out());
            let x = x.columns(*x_at, weight.n_in());
            weight.for_products(cx.level, part, x, &mut lane.tiles, |row, first, products| {
                let first = out_at + first;
                // SAFETY: these columns are this lane's.
                let out = unsafe { cx.columns(self.op.out, row, first..first + products.len()) };
                out.copy_from_slice(products);
            });
        }
    }
}
