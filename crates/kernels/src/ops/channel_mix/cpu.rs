use std::sync::Arc;

use super::ChannelMix;
use crate::cpu::{CpuOp, Ctx, Input, Lane, PackedMatrix, Packer, Prepared, activate, shift_mix};
use crate::ops::Activation;
use crate::ops::shift_mix::cpu::for_each_shift;

struct Step {
    op: ChannelMix,
    input: Input,
    /// The normed rows mixed with those before them.
    mixed: Input,
    weight: Arc<PackedMatrix>,
}

pub(crate) fn prepare(op: &ChannelMix, packer: &mut Packer) -> Prepared {
    let input = Input::new(op.x, Some(op.norm), &[], packer).and_floats(packer);
    let weight = packer.matrix(op.weight);
    let mixed = Input::of_work(weight.n_in(), &[(0, op.weight)], packer);
    packer.need(|s| &mut s.shared_work, &[weight.n_in(), packer.max_rows()]);
    Ok(Box::new(Step { op: op.clone(), input, mixed, weight }))
}

impl CpuOp for Step {
    fn stages(&self, cx: &Ctx) -> usize {
        self.input.stages(cx) + 1 + self.mixed.stages(cx) + 1
    }

    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        match stage.checked_sub(self.input.stages(cx)) {
            None => self.input.prepare(cx, lane),
            Some(0) => self.mix(cx, lane),
            Some(stage) if stage <= self.mixed.stages(cx) => self.mixed.prepare(cx, lane),
            Some(_) => self.project(cx, lane),
        }
    }
}

impl Step {
    fn mix(&self, cx: &Ctx, lane: &mut Lane) {
        let width = self.weight.n_in();
        let columns = lane.columns(width);
        let rows = self.input.view(cx, lane.normed, lane.row_words).floats;
        let mix = &cx.vector(self.op.mix)[columns.clone()];
        for_each_shift(cx, self.op.state, rows, columns.clone(), |row, now, before| {
            let at = row * width;
            // SAFETY: these columns are this lane's.
            let out = unsafe { cx.memory.work.slice_mut(at + columns.start..at + columns.end) };
            shift_mix(cx.level, now, before, mix, out);
        });
    }

    fn project(&self, cx: &Ctx, lane: &mut Lane) {
        let columns = lane.columns(self.weight.n_out());
        let x = self.mixed.view(cx, lane.normed, lane.row_words).operand(0);
        self.weight.for_products(cx.level, columns, x, &mut lane.tiles, |row, first, products| {
            activate(cx.level, Activation::SquaredRelu, products);
            // SAFETY: these columns are this lane's.
            let out = unsafe { cx.columns(self.op.out, row, first..first + products.len()) };
            out.copy_from_slice(products);
        });
    }
}
