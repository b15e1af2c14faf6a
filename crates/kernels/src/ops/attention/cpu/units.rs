//! How a step's attention is cut into units of work, and which lane makes what.

use std::ops::Range;

use super::{Attention, PART, STEP, Sizes, state};
use crate::batch::{BLOCK, Batch, Span};

/// One KV head for a tile of rows of one sequence.
pub(super) struct Unit<'a> {
    pub span: &'a Span,
    /// Of the batch.
    pub first_row: usize,
    pub rows: usize,
    pub kv_head: usize,
    /// The unit's place in shared memory if it is cut between lanes.
    pub slot: Option<usize>,
    group: usize,
    window: usize,
    /// The cost of all units before it, in blocks times what a block costs.
    before: u64,
    cost_of_block: u64,
}

impl Unit<'_> {
    /// The position of one of its rows.
    pub fn position(&self, row: usize) -> usize {
        self.span.start as usize + (self.first_row - self.span.first_row as usize) + row
    }

    /// The first position that one of its rows sees.
    pub fn first_seen(&self, row: usize) -> usize {
        (self.position(row) + 1).saturating_sub(self.window)
    }

    /// What one of its rows sees of the step that begins at `from`, counted from there.
    pub fn seen(&self, row: usize, from: usize) -> Range<usize> {
        self.first_seen(row).max(from) - from..(self.position(row) + 1).min(from + STEP) - from
    }

    /// Whether all these rows see all of a step: the first sees least of its end, the last least of its begin.
    pub fn all_see(&self, rows: &Range<usize>, from: usize) -> bool {
        self.seen(rows.start, from).end == STEP && self.seen(rows.end - 1, from).start == 0
    }

    pub fn queries(&self) -> usize {
        self.rows * self.group
    }

    /// The parts that any of its rows sees something of.
    pub fn parts(&self) -> Range<usize> {
        self.first_seen(0) / PART..self.position(self.rows - 1) / PART + 1
    }

    /// The rows that see something of these positions: they follow one another.
    pub fn rows_seeing(&self, positions: Range<usize>) -> Range<usize> {
        let before = positions.start.saturating_sub(self.position(0));
        // A row does not see these positions any more if its window begins past them.
        let until = (positions.end - 1).saturating_add(self.window).saturating_sub(self.position(0));
        before.min(self.rows)..until.min(self.rows)
    }

    pub fn queries_seeing(&self, positions: Range<usize>) -> Range<usize> {
        let rows = self.rows_seeing(positions);
        rows.start * self.group..rows.end * self.group
    }

    /// The blocks that are read for these positions.
    fn blocks_before(&self, position: usize) -> u64 {
        let first = self.first_seen(0) / BLOCK;
        let end = self.position(self.rows - 1) / BLOCK + 1;
        ((position / BLOCK).clamp(first, end) - first) as u64
    }

    /// Twice the cost up to the middle of some parts, counted from the first unit's begin.
    fn middle(&self, parts: Range<usize>) -> u64 {
        let blocks = self.blocks_before(parts.start * PART) + self.blocks_before(parts.end * PART);
        2 * self.before + blocks * self.cost_of_block
    }

    fn cost(&self) -> u64 {
        self.blocks_before(usize::MAX) * self.cost_of_block
    }
}

pub(super) struct Sharing<'a> {
    op: &'a Attention,
    batch: &'a Batch,
    sizes: Sizes,
    lanes: usize,
    /// Floats of shared memory for a unit.
    slot: usize,
    total: u64,
}

impl<'a> Sharing<'a> {
    pub fn new(op: &'a Attention, batch: &'a Batch, sizes: Sizes, lanes: usize, slot: usize) -> Sharing<'a> {
        let mut sharing = Sharing { op, batch, sizes, lanes, slot, total: 0 };
        let mut total = 0;
        sharing.for_each_tile(|tile| total += tile.cost() * sizes.kv_heads as u64);
        sharing.total = total.max(1);
        sharing
    }

    /// All tiles of rows, as units of the first KV head.
    fn for_each_tile(&self, mut f: impl FnMut(Unit<'a>)) {
        for span in self.batch.spans() {
            let rows = span.row_range();
            for first_row in rows.clone().step_by(self.sizes.rows) {
                let rows = self.sizes.rows.min(rows.end - first_row);
                f(Unit {
                    span,
                    first_row,
                    rows,
                    kv_head: 0,
                    slot: None,
                    group: self.sizes.group,
                    window: self.op.window.unwrap_or(usize::MAX),
                    before: 0,
                    // Reading a block costs about as much as using it for eight queries.
                    cost_of_block: (rows * self.sizes.group + 8) as u64,
                });
            }
        }
    }

    /// All units, in the same order on every lane.
    pub fn for_each(&self, mut f: impl FnMut(&Unit)) {
        let (mut before, mut cut) = (0, 0);
        self.for_each_tile(|mut unit| {
            for kv_head in 0..self.sizes.kv_heads {
                (unit.kv_head, unit.before, unit.slot) = (kv_head, before, None);
                if self.is_cut(&unit) {
                    unit.slot = Some(cut);
                    cut += 1;
                }
                f(&unit);
                before += unit.cost();
            }
        });
    }

    fn lane_at(&self, twice_cost: u64) -> usize {
        let lane = u128::from(twice_cost) * self.lanes as u128 / (2 * u128::from(self.total));
        (lane as usize).min(self.lanes - 1)
    }

    fn lane_of(&self, unit: &Unit, part: usize) -> usize {
        self.lane_at(unit.middle(part..part + 1))
    }

    /// Whether several lanes make its parts.
    fn is_cut(&self, unit: &Unit) -> bool {
        let parts = unit.parts();
        let room =
            parts.len().saturating_mul(unit.queries()).saturating_mul(state::floats(self.sizes.padded));
        room <= self.slot && self.lane_of(unit, parts.start) != self.lane_of(unit, parts.end - 1)
    }

    /// The parts of a unit that a lane makes.
    pub fn parts_of(&self, lane: usize, unit: &Unit) -> Range<usize> {
        let parts = unit.parts();
        if unit.slot.is_none() {
            let mine = self.lane_at(unit.middle(parts.clone())) == lane;
            return if mine { parts } else { 0..0 };
        }
        let start = parts.clone().find(|&part| self.lane_of(unit, part) >= lane).unwrap_or(parts.end);
        let end = parts.clone().find(|&part| self.lane_of(unit, part) > lane).unwrap_or(parts.end);
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SLOT, TILE};
    use super::*;
    use crate::program::ProgramBuilder;

    fn op(window: Option<usize>) -> Attention {
        let mut b = ProgramBuilder::new();
        let (qkv, out) = (b.buffer("qkv", 1), b.buffer("out", 1));
        let kv = b.kv_layer(3, 64);
        Attention { qkv, heads: 9, scale: 1.0, window, soft_cap: None, sinks: None, kv, out }
    }

    fn batch(spans: &[(u32, usize)]) -> Batch {
        let mut batch = Batch::default();
        for &(start, rows) in spans {
            batch.push_span(&vec![0; rows], start, &[], 0);
        }
        batch
    }

    #[test]
    fn every_part_is_one_lanes_and_lanes_have_about_the_same() {
        let sizes = Sizes { kv_heads: 3, group: 3, dim: 64, padded: 64, rows: TILE / 3 };
        let batches = [
            batch(&[(0, 1)]),
            batch(&[(4095, 1)]),
            batch(&[(255, 1), (256, 1), (999, 1), (16_000, 1)]),
            batch(&[(0, 512)]),
            batch(&[(7680, 512), (5, 20), (0, 0), (3000, 1)]),
            batch(&[(4000, 20)]),
        ];
        for (number, batch) in batches.iter().enumerate() {
            for (window, lanes, slot) in
                [(None, 1, SLOT), (None, 2, SLOT), (None, 7, 1 << 20), (None, 3, 0), (Some(300), 2, SLOT)]
            {
                let op = op(window);
                let sharing = Sharing::new(&op, batch, sizes, lanes, slot);
                let (mut costs, mut cut) = (vec![0; lanes], 0);
                sharing.for_each(|unit| {
                    let mut next = unit.parts().start;
                    for (lane, cost) in costs.iter_mut().enumerate() {
                        let parts = sharing.parts_of(lane, unit);
                        if !parts.is_empty() {
                            assert_eq!(parts.start, next);
                            next = parts.end;
                            *cost +=
                                unit.middle(parts.end..parts.end) - unit.middle(parts.start..parts.start);
                        }
                    }
                    assert_eq!(next, unit.parts().end);
                    assert!(unit.slot.is_none_or(|slot| slot == cut));
                    cut += usize::from(unit.slot.is_some());
                });
                assert!(cut < lanes && (slot > 0 || cut == 0));
                assert_eq!(costs.iter().sum::<u64>(), 2 * sharing.total);
                let most = costs.iter().max().unwrap() * lanes as u64;
                let even = number == 3 || number == 4 || (number > 0 && slot > 0 && window.is_none());
                assert!(!even || most < 2 * sharing.total * 6 / 5, "{number} {lanes}: {costs:?}");
            }
        }
    }

    #[test]
    fn rows_see_their_windows() {
        for window in [1, 5, 16, 300, usize::MAX] {
            for start in [0, 3, 250, 300, 1000] {
                let span = Span { first_row: 7, rows: 30, start, table_at: 0, blocks: 0, slot: 0 };
                let unit = Unit {
                    span: &span,
                    first_row: 17,
                    rows: 16,
                    kv_head: 0,
                    slot: None,
                    group: 3,
                    window,
                    before: 0,
                    cost_of_block: 1,
                };
                for from in (0..1100).step_by(64) {
                    let sees = |row: &usize| {
                        (from..from + 64).any(|p| {
                            p <= unit.position(*row) && p + window.min(1 << 20) > unit.position(*row)
                        })
                    };
                    let want: Vec<usize> = (0..16).filter(sees).collect();
                    let have: Vec<usize> = unit.rows_seeing(from..from + 64).collect();
                    assert_eq!(have, want, "{window} {start} {from}");
                }
            }
        }
    }
}
