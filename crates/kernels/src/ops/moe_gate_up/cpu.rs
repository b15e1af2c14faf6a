use std::sync::Arc;

use super::MoeGateUp;
use crate::cpu::{CpuOp, Ctx, InputRows, Lane, PackedMatrix, Packer, Prepared, TILE, Visits, gate};

struct Step {
    op: MoeGateUp,
    gate: Arc<PackedMatrix>,
    up: Arc<PackedMatrix>,
    hidden: usize,
}

pub(crate) fn prepare(op: &MoeGateUp, packer: &mut Packer) -> Prepared {
    Visits::need(packer, op.experts, op.top_k);
    let (gate, up) = (packer.matrix(op.gate)?, packer.matrix(op.up)?);
    Ok(Box::new(Step { op: op.clone(), gate, up, hidden: op.hidden(packer.program) }))
}

impl CpuOp for Step {
    fn stages(&self, _cx: &Ctx) -> usize {
        1
    }

    /// Expert by expert, all rows that chose it at once.
    fn run(&self, _stage: usize, cx: &Ctx, lane: &mut Lane) {
        let columns = lane.columns(self.hidden);
        // SAFETY: the op writes neither of its inputs.
        let (x, routes) = unsafe { (cx.rows(self.op.normed), cx.rows(self.op.routes)) };
        let visits = Visits::sorted(routes, self.op.top_k, self.op.experts, lane.words);
        for expert in 0..self.op.experts {
            let (rows, choices) = visits.of(expert);
            if rows.is_empty() {
                continue;
            }
            for first in columns.clone().step_by(TILE) {
                let n = TILE.min(columns.end - first);
                let tile = &mut *lane.tiles.tile;
                let (gates, rest) = tile.split_at_mut(rows.len() * n);
                let ups = &mut rest[..rows.len() * n];
                let from = expert * self.hidden + first;
                let x: InputRows = x.picked(rows);
                self.gate.product(cx.level, from..from + n, x, lane.tiles.decoded, gates);
                self.up.product(cx.level, from..from + n, x, lane.tiles.decoded, ups);
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
