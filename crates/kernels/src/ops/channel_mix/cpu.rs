use std::sync::Arc;

use super::ChannelMix;
use crate::cpu::{
    CpuOp, Ctx, InputRows, Lane, NormedInput, PackedMatrix, Packer, Prepared, activate, shift_mix,
};
use crate::ops::Activation;
use crate::ops::shift_mix::cpu::for_each_shift;

struct Step {
    op: ChannelMix,
    input: NormedInput,
    weight: Arc<PackedMatrix>,
}

pub(crate) fn prepare(op: &ChannelMix, packer: &mut Packer) -> Prepared {
    let input = NormedInput::new(op.x, Some(op.norm), packer);
    let weight = packer.matrix(op.weight)?;
    packer.need(|s| &mut s.shared_work, &[weight.n_in(), packer.max_rows()]);
    Ok(Box::new(Step { op: op.clone(), input, weight }))
}

impl CpuOp for Step {
    fn stages(&self, cx: &Ctx) -> usize {
        self.input.stages(cx) + 2
    }

    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        match stage.checked_sub(self.input.stages(cx)) {
            None => self.input.normalize(cx, lane),
            Some(0) => self.mix(cx, lane),
            Some(_) => self.project(cx, lane),
        }
    }
}

impl Step {
    fn mix(&self, cx: &Ctx, lane: &mut Lane) {
        let width = self.weight.n_in();
        let columns = lane.columns(width);
        let rows = self.input.rows(cx, lane.normed);
        let mix = &cx.vector(self.op.mix)[columns.clone()];
        for_each_shift(cx, self.op.state, rows, columns.clone(), |row, now, before| {
            let at = row * width;
            // SAFETY: these columns are this lane's.
            let out = unsafe { cx.memory.work.slice_mut(at + columns.start..at + columns.end) };
            shift_mix(cx.level, now, before, mix, out);
        });
    }

    fn project(&self, cx: &Ctx, lane: &mut Lane) {
        let (width, rows) = (self.weight.n_in(), cx.batch.rows());
        // SAFETY: written in the stage before.
        let x = InputRows::new(unsafe { cx.memory.work.slice(0..rows * width) }, width, width, rows);
        let columns = lane.columns(self.weight.n_out());
        self.weight.for_products(cx.level, columns, x, &mut lane.tiles, |row, first, products| {
            activate(cx.level, Activation::SquaredRelu, products);
            // SAFETY: these columns are this lane's.
            let out = unsafe { cx.columns(self.op.out, row, first..first + products.len()) };
            out.copy_from_slice(products);
        });
    }
}
