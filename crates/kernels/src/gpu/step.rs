//! A step's batch as one array of words that all kernels can see.

use super::attended::{Attended, ITEM, SPLIT, cells};
use crate::backend::Limits;
use crate::batch::Batch;

/// Counts, and where the arrays begin: kernels read that, so that they are the same for every size of a step.
const HEAD: usize = 12;
/// Words of a span: first row, rows, start, where its table begins, slot.
const SPAN: usize = 5;

/// Where the arrays lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepLayout {
    rows: usize,
    logit_rows: usize,
    cells: usize,
}

impl StepLayout {
    pub fn new(limits: &Limits) -> StepLayout {
        StepLayout { rows: limits.rows, logit_rows: limits.logit_rows, cells: cells(limits) }
    }

    fn spans_at(&self) -> usize {
        HEAD + 3 * self.rows + self.logit_rows
    }

    /// How attention takes the rows lies behind them, as much as there is of it.
    fn attended_at(&self) -> usize {
        self.spans_at() + SPAN * self.rows
    }

    pub fn words(&self) -> usize {
        // Every row is a tile, an item and a split at most, and every cell is an item.
        self.attended_at() + self.rows * (1 + ITEM + SPLIT) + self.cells * ITEM
    }

    /// The batch in words, and the block tables, both in place of what was there. Spans without rows have nothing to be done.
    pub fn write(&self, batch: &Batch, attended: &mut Attended, step: &mut Vec<u32>, tables: &mut Vec<u32>) {
        step.clear();
        tables.clear();
        step.resize(self.attended_at(), 0);
        attended.begin(batch);
        let mut spans = 0;
        for span in batch.spans().iter().filter(|span| span.rows > 0) {
            let at = self.spans_at() + SPAN * spans;
            let words = [span.first_row, span.rows, span.start, tables.len() as u32, span.slot];
            step[at..at + SPAN].copy_from_slice(&words);
            attended.take(span, tables.len() as u32);
            tables.extend_from_slice(batch.block_table(span));
            let rows = span.row_range();
            step[HEAD + 2 * self.rows..][rows].fill(spans as u32);
            spans += 1;
        }
        let tiles = step.len();
        step.extend(&attended.tiles);
        let items = step.len();
        step.extend(attended.items.as_flattened());
        let splits = step.len();
        step.extend(attended.splits.as_flattened());
        let mut put = |at: usize, words: &[u32]| step[at..at + words.len()].copy_from_slice(words);
        let (positions, span_of, logits) = (HEAD + self.rows, HEAD + 2 * self.rows, HEAD + 3 * self.rows);
        let counts = [batch.rows(), spans, batch.logit_rows().len()];
        put(0, &counts.map(|n| n as u32));
        let places = [positions, span_of, logits, self.spans_at(), tiles, items, splits];
        put(counts.len(), &places.map(|n| n as u32));
        put(HEAD, batch.tokens());
        put(HEAD + self.rows, batch.positions());
        put(HEAD + 3 * self.rows, batch.logit_rows());
    }
}

/// How kernels see a step.
pub(crate) fn wgsl() -> String {
    format!(
        "@group(0) @binding(0) var<storage, read> step_words: array<u32>;\n\
         @group(0) @binding(1) var<storage, read> block_tables: array<u32>;\n\
         struct Span {{ first_row: u32, rows: u32, start: u32, table_at: u32, slot: u32 }}\n\
         fn batch_rows() -> u32 {{ return step_words[0]; }}\n\
         fn batch_spans() -> u32 {{ return step_words[1]; }}\n\
         fn logit_rows() -> u32 {{ return step_words[2]; }}\n\
         fn token_of(row: u32) -> u32 {{ return step_words[{HEAD}u + row]; }}\n\
         fn position_of(row: u32) -> u32 {{ return step_words[step_words[3] + row]; }}\n\
         fn span_number(row: u32) -> u32 {{ return step_words[step_words[4] + row]; }}\n\
         fn logit_row(i: u32) -> u32 {{ return step_words[step_words[5] + i]; }}\n\
         fn span_at(i: u32) -> Span {{\n    let at = step_words[6] + {SPAN}u * i;\n    return Span(step_words[at], \
         step_words[at + 1u], step_words[at + 2u], step_words[at + 3u], step_words[at + 4u]);\n}}\n\
         struct Item {{ row: u32, position: u32, table_at: u32, first: u32, count: u32, cell: u32 }}\n\
         struct Split {{ row: u32, position: u32, cell: u32 }}\n\
         fn tile_at(i: u32) -> u32 {{ return step_words[step_words[7] + i]; }}\n\
         fn item_at(i: u32) -> Item {{\n    let at = step_words[8] + {ITEM}u * i;\n    return Item(step_words[at], \
         step_words[at + 1u], step_words[at + 2u], step_words[at + 3u], step_words[at + 4u], step_words[at + 5u]);\n}}\n\
         fn split_at(i: u32) -> Split {{\n    let at = step_words[9] + {SPLIT}u * i;\n    return Split(step_words[at], \
         step_words[at + 1u], step_words[at + 2u]);\n}}\n"
    )
}
