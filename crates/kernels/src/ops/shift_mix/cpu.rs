use std::ops::Range;

use super::ShiftMix;
use crate::cpu::{CpuOp, Ctx, Input, InputRows, Lane, Packer, Prepared, shift_mix};
use crate::program::RecId;

struct Step {
    op: ShiftMix,
    input: Input,
}

pub(crate) fn prepare(op: &ShiftMix, packer: &mut Packer) -> Prepared {
    let input = Input::new(op.x, Some(op.norm), &[], packer).and_floats(packer);
    Ok(Box::new(Step { op: op.clone(), input }))
}

impl CpuOp for Step {
    fn stages(&self, cx: &Ctx) -> usize {
        self.input.stages(cx) + 1
    }

    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        if stage < self.input.stages(cx) {
            return self.input.prepare(cx, lane);
        }
        let width = cx.program.buffer(self.op.x).width;
        let columns = lane.columns(width);
        let rows = self.input.view(cx, lane.normed, lane.row_words).floats;
        let mix = cx.vector(self.op.mix);
        for_each_shift(cx, self.op.state, rows, columns.clone(), |row, now, before| {
            for m in 0..self.op.mixes {
                let part = m * width + columns.start..m * width + columns.end;
                // SAFETY: these columns of every mix are this lane's.
                let out = unsafe { cx.columns(self.op.out, row, part.clone()) };
                shift_mix(cx.level, now, before, &mix[part], out);
            }
        });
    }
}

/// Calls `each` with every row and the one before it in its sequence, as far as `columns` go, and moves the state on.
/// The columns must be the lane's: it reads the state for the first row and writes it after the last.
pub(crate) fn for_each_shift(
    cx: &Ctx,
    state: RecId,
    rows: InputRows,
    columns: Range<usize>,
    mut each: impl FnMut(usize, &[f32], &[f32]),
) {
    for span in cx.batch.spans().iter().filter(|span| span.rows > 0) {
        // SAFETY: these columns are this lane's, and every span of a batch has its own slot.
        let state = unsafe { cx.state(state, span, columns.clone()) };
        if span.start == 0 {
            state.fill(0.0);
        }
        let mut before: &[f32] = state;
        for row in span.row_range() {
            let now = &rows.row(row)[columns.clone()];
            each(row, now, before);
            before = now;
        }
        state.copy_from_slice(&rows.row(span.row_range().end - 1)[columns.clone()]);
    }
}
