use std::sync::Arc;

use super::MoeDown;
use crate::cpu::{CpuOp, Ctx, Input, Lane, PackedMatrix, Packer, Prepared, Visits, WIDTH};

/// Columns made at a time: many, because for each time the rows of every expert are gathered anew.
const COLUMNS: usize = 256;

struct Step {
    op: MoeDown,
    input: Input,
    down: Arc<PackedMatrix>,
}

pub(crate) fn prepare(op: &MoeDown, packer: &mut Packer) -> Prepared {
    Visits::need(packer, op.experts, op.top_k);
    packer.need(|s| &mut s.tile, &[COLUMNS, packer.max_rows()]);
    // An expert's columns may begin and end within panels.
    packer.need(|s| &mut s.whole, &[COLUMNS + 2 * WIDTH, packer.max_rows()]);
    packer.need(|s| &mut s.work, &[COLUMNS, op.top_k, packer.max_rows()]);
    let input = Input::picked(op.hidden, op.top_k, &[op.down], packer);
    Ok(Box::new(Step { op: op.clone(), input, down: packer.matrix(op.down) }))
}

impl CpuOp for Step {
    fn stages(&self, cx: &Ctx) -> usize {
        self.input.stages(cx) + 1
    }

    /// A few columns at a time: first the products of every expert, then their sum in the order of the routes.
    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        if stage < self.input.stages(cx) {
            return self.input.prepare(cx, lane);
        }
        let (top_k, width) = (self.op.top_k, cx.program.buffer(self.op.residual).width);
        let columns = lane.columns(width);
        // SAFETY: the op does not write its input.
        let routes = unsafe { cx.rows(self.op.routes) };
        // The hidden rows of all choices, one after another.
        let hidden = self.input.view(cx, lane.normed, lane.row_words);
        let visits = Visits::sorted(routes, top_k, self.op.experts, lane.words);
        for first in columns.clone().step_by(COLUMNS) {
            let n = COLUMNS.min(columns.end - first);
            for expert in 0..self.op.experts {
                let (rows, choices) = visits.of(expert);
                if rows.is_empty() {
                    continue;
                }
                let from = expert * width + first;
                let tile = &mut lane.tiles.tile[..rows.len() * n];
                let x = hidden.picked(0, visits.pairs(expert), lane.gathered, lane.gathered_floats);
                self.down.product(cx.level, from..from + n, x, lane.tiles.whole, tile);
                for ((&row, &choice), y) in rows.iter().zip(choices).zip(tile.chunks_exact(n)) {
                    let pair = row as usize * top_k + choice as usize;
                    lane.work[pair * n..][..n].copy_from_slice(y);
                }
            }
            for (row, products) in lane.work.chunks_exact(top_k * n).take(cx.batch.rows()).enumerate() {
                // SAFETY: these columns are this lane's.
                let residual = unsafe { cx.columns(self.op.residual, row, first..first + n) };
                add_weighted(residual, &routes.row(row)[top_k..], products);
            }
        }
    }
}

fn add_weighted(residual: &mut [f32], weights: &[f32], products: &[f32]) {
    let n = residual.len();
    for (c, residual) in residual.iter_mut().enumerate() {
        let sum: f32 =
            weights.iter().enumerate().map(|(choice, weight)| weight * products[choice * n + c]).sum();
        *residual += sum;
    }
}
