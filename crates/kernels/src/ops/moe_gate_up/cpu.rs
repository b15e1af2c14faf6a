use std::sync::Arc;

use super::MoeGateUp;
use crate::cpu::{CpuOp, Ctx, Input, Lane, PackedMatrix, Packer, Prepared, Visits, gate, tile};

struct Step {
    op: MoeGateUp,
    input: Input,
    gate: Arc<PackedMatrix>,
    up: Arc<PackedMatrix>,
    hidden: usize,
}

pub(crate) fn prepare(op: &MoeGateUp, packer: &mut Packer) -> Prepared {
    Visits::need(packer, op.experts, op.top_k);
    let (gate, up) = (packer.matrix(op.gate), packer.matrix(op.up));
    let input = Input::picked(op.normed, 1, &[op.gate, op.up], packer);
    Ok(Box::new(Step { op: op.clone(), input, gate, up, hidden: op.hidden(packer.program) }))
}

impl CpuOp for Step {
    fn stages(&self, cx: &Ctx) -> usize {
        self.input.stages(cx) + 1
    }

    /// Expert by expert, all rows that chose it at once.
    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        if stage < self.input.stages(cx) {
            return self.input.prepare(cx, lane);
        }
        let columns = lane.columns(self.hidden);
        // SAFETY: the op does not write its input.
        let routes = unsafe { cx.rows(self.op.routes) };
        let x = self.input.view(cx, lane.normed, lane.row_words);
        let visits = Visits::sorted(routes, self.op.top_k, self.op.experts, lane.words);
        for expert in 0..self.op.experts {
            let (rows, choices) = visits.of(expert);
            if rows.is_empty() {
                continue;
            }
            let (x, width) = (x.picked(0, rows, lane.gathered, lane.gathered_floats), tile(rows.len()));
            for first in columns.clone().step_by(width) {
                let n = width.min(columns.end - first);
                let tile = &mut *lane.tiles.tile;
                let (gates, rest) = tile.split_at_mut(rows.len() * n);
                let ups = &mut rest[..rows.len() * n];
                let from = expert * self.hidden + first;
                self.gate.product(cx.level, from..from + n, x, lane.tiles.whole, gates);
                self.up.product(cx.level, from..from + n, x, lane.tiles.whole, ups);
                let products = gates.chunks_exact(n).zip(ups.chunks_exact(n));
                for ((&row, &choice), (gates, ups)) in rows.iter().zip(choices).zip(products) {
                    let at = choice as usize * self.hidden + first;
                    // SAFETY: these columns of every expert are this lane's.
                    let out = unsafe { cx.columns(self.op.out, row as usize, at..at + n) };
                    gate(cx.level, self.op.activation, gates, ups, out);
                }
            }
        }
    }
}
