//! Which rows of a step attention takes in which way. Sums over positions run over portions, and over stretches of portions, that
//! begin at multiples of their length, so all ways give the same bits and the choice is one of speed.

use crate::backend::Limits;
use crate::batch::{BLOCK, Batch, Span};

/// Positions whose weights are taken relative to one largest score.
pub(crate) const PORTION: usize = 64;
/// Positions whose portions are put together before they meet those before them.
pub(crate) const STRETCH: usize = 256;
/// Rows of a span that go through its positions together at most.
pub(crate) const TILE: usize = 32;

/// Spans of so many rows at most are taken row by row: too few to share what is read.
const FEW: usize = 16;
/// So many rows keep a device busy, however their positions are shared out.
const MANY: usize = 64;
/// Stretches of rows that there is room for at most: of what is put together afterwards. Rows whose stretches find no room are not
/// split.
const CELLS: usize = 1024;

/// What stands for a row whose stretches are put together where they are made.
pub(crate) const NO_CELL: u32 = u32::MAX;

/// Words of an item and of a split, as `step.rs` declares them to kernels.
pub(super) const ITEM: usize = 6;
pub(super) const SPLIT: usize = 3;

/// Places for what a stretch of a row makes.
pub(crate) fn cells(limits: &Limits) -> usize {
    let longest = limits.blocks.saturating_mul(BLOCK).div_ceil(STRETCH);
    // A row of one stretch needs none.
    let wanted = if longest > 1 { longest.saturating_mul(limits.rows.min(MANY)) } else { 0 };
    wanted.min(CELLS)
}

/// A step's rows.
#[derive(Default)]
pub(super) struct Attended {
    /// The first rows of tiles.
    pub tiles: Vec<u32>,
    /// Row, position, where its block table begins, first stretch, stretches, and the cell of the first or [`NO_CELL`].
    pub items: Vec<[u32; ITEM]>,
    /// Of rows whose stretches are put together afterwards: row, position, and the cell of the stretch at position 0.
    pub splits: Vec<[u32; SPLIT]>,
    may_split: bool,
    cells: usize,
    cells_left: usize,
}

impl Attended {
    pub fn new(limits: &Limits) -> Attended {
        Attended { cells: cells(limits), ..Attended::default() }
    }

    pub fn begin(&mut self, batch: &Batch) {
        self.tiles.clear();
        self.items.clear();
        self.splits.clear();
        let alone = batch.spans().iter().filter(|span| is_taken_alone(span));
        self.may_split = alone.map(|span| span.rows as usize).sum::<usize>() <= MANY;
        self.cells_left = self.cells;
    }

    pub fn take(&mut self, span: &Span, table_at: u32) {
        if !is_taken_alone(span) {
            // The last, which see most, begin first.
            self.tiles.extend(span.row_range().step_by(TILE).rev().map(|row| row as u32));
            return;
        }
        for i in 0..span.rows {
            self.take_row(span.first_row + i, span.start + i, table_at);
        }
    }

    fn take_row(&mut self, row: u32, position: u32, table_at: u32) {
        let stretches = position / STRETCH as u32 + 1;
        if stretches == 1 || !self.may_split || stretches as usize > self.cells_left {
            self.items.push([row, position, table_at, 0, stretches, NO_CELL]);
            return;
        }
        let cell = (self.cells - self.cells_left) as u32;
        self.cells_left -= stretches as usize;
        self.splits.push([row, position, cell]);
        self.items.extend((0..stretches).map(|s| [row, position, table_at, s, 1, cell + s]));
    }
}

fn is_taken_alone(span: &Span) -> bool {
    span.rows as usize <= FEW
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::KvType;

    fn attended(limits: &Limits, spans: &[(usize, u32)]) -> Attended {
        let mut batch = Batch::default();
        for &(rows, start) in spans {
            batch.push_span(&vec![0; rows], start, &[], 0);
        }
        let mut attended = Attended::new(limits);
        attended.begin(&batch);
        batch.spans().iter().for_each(|span| attended.take(span, 7));
        attended
    }

    fn limits(blocks: usize) -> Limits {
        Limits { rows: 1000, logit_rows: 1, blocks, slots: 1, kv_type: KvType::F16 }
    }

    #[test]
    fn prompts_are_tiles_and_few_rows_are_taken_alone() {
        let of = attended(&limits(64), &[(1, 9), (70, 0), (2, 254)]);
        assert_eq!(of.tiles, [65, 33, 1]);
        let whole = |row, position| [row, position, 7, 0, 1, NO_CELL];
        assert_eq!(of.items, [whole(0, 9), whole(71, 254), whole(72, 255)]);
        assert!(of.splits.is_empty());
    }

    #[test]
    fn long_contexts_are_split_as_long_as_there_are_cells() {
        let of = attended(&limits(64), &[(1, 256), (1, 1023)]);
        assert_eq!(of.splits, [[0, 256, 0], [1, 1023, 2]]);
        assert_eq!(of.items.len(), 6);
        assert_eq!(of.items[5], [1, 1023, 7, 3, 1, 5]);
        // Of 100 stretches each.
        let position = 100 * STRETCH as u32 - 1;
        let of = attended(&limits(100_000), &[(1, position); 11]);
        assert_eq!(of.splits.len(), CELLS / 100);
        assert_eq!(of.items.last().unwrap()[4..], [100, NO_CELL]);
    }

    #[test]
    fn many_rows_are_not_split() {
        let of = attended(&limits(64), &[(1, 700); MANY + 1]);
        assert!(of.splits.is_empty());
        assert_eq!(of.items.len(), MANY + 1);
    }

    #[test]
    fn short_contexts_need_no_cells() {
        assert_eq!(cells(&limits(16)), 0);
        assert_eq!(cells(&limits(17)), 2 * MANY);
    }
}
