//! A step's batch as one array of words that all kernels can see: one write brings all that a step is.

use super::attended::{Attended, ITEM, SPLIT, cells};
use crate::backend::Limits;
use crate::batch::Batch;
use crate::sampling::gpu::most_asked;

/// Counts, and where the arrays begin: kernels read that, so that they are the same for every size of a step.
const HEAD: usize = 16;
/// Words of a span: first row, rows, start, where its table begins, slot.
const SPAN: usize = 5;
/// Words of what is asked of a row of logits.
pub(crate) const ASKED: usize = 8;

/// Words of block tables that there is room for at least.
const FIRST_TABLES: usize = 1024;

/// Places in the head.
mod place {
    pub const ASKED: usize = 11;
    pub const PLAIN: usize = 12;
    pub const BLOCKS: usize = 13;
}

/// The words of a step.
pub(crate) struct StepWords {
    words: Vec<u32>,
    /// Words but for what is asked.
    batch: usize,
    spans: usize,
    attended: Attended,
}

impl StepWords {
    pub fn new(limits: &Limits) -> StepWords {
        StepWords { words: Vec::new(), batch: 0, spans: 0, attended: Attended::new(limits) }
    }

    /// Words that there is room for at first, where a row has so many angles. Tables may share blocks, so they may be longer
    /// together than there are blocks.
    pub fn room(limits: &Limits, angles: usize) -> usize {
        // Every row is a tile, an item and a split at most, and every cell is an item.
        let of_row = 3 + SPAN + angles + 1 + ITEM + SPLIT;
        let rows = limits.rows.saturating_mul(of_row).saturating_add(cells(limits).saturating_mul(ITEM));
        let logit_rows = limits.logit_rows.saturating_add(most_asked(limits).saturating_mul(ASKED));
        [rows, logit_rows, limits.blocks.max(FIRST_TABLES)].into_iter().fold(HEAD, usize::saturating_add)
    }

    /// The batch and the angles of its rows, in place of what was there. Spans without rows have nothing to be done.
    pub fn write(&mut self, batch: &Batch, angles: impl FnOnce(&mut Vec<u32>)) {
        let (words, rows) = (&mut self.words, batch.rows());
        let spans = || batch.spans().iter().filter(|span| span.rows > 0);
        self.spans = spans().count();
        words.clear();
        words.resize(HEAD, 0);
        words.extend_from_slice(batch.tokens());
        let positions = words.len();
        words.extend_from_slice(batch.positions());
        let span_of = words.len();
        words.resize(span_of + rows, 0);
        let logits = words.len();
        words.extend_from_slice(batch.logit_rows());
        let spans_at = words.len();
        let mut table = spans_at + SPAN * self.spans;
        self.attended.begin(batch);
        for (number, span) in (0..).zip(spans()) {
            words.extend([span.first_row, span.rows, span.start, table as u32, span.slot]);
            words[span_of..][span.row_range()].fill(number);
            self.attended.take(span, table as u32);
            table += batch.block_table(span).len();
        }
        spans().for_each(|span| words.extend_from_slice(batch.block_table(span)));
        let angles_at = words.len();
        angles(words);
        let tiles = words.len();
        words.extend(&self.attended.tiles);
        let items = words.len();
        words.extend(self.attended.items.as_flattened());
        let splits = words.len();
        words.extend(self.attended.splits.as_flattened());
        self.batch = words.len();
        let counts = [rows, self.spans, batch.logit_rows().len()];
        let places = [positions, span_of, logits, spans_at, angles_at, tiles, items, splits];
        for (to, from) in words.iter_mut().zip(counts.into_iter().chain(places)) {
            *to = from as u32;
        }
    }

    /// What is asked of rows of logits that have so many blocks, in place of what was asked before: first the plain ones.
    pub fn ask(&mut self, plain: usize, blocks: usize, asked: impl Iterator<Item = u32>) {
        // Before the first batch there is nothing.
        self.batch = self.batch.max(HEAD);
        self.words.resize(self.batch, 0);
        self.words[place::ASKED] = self.batch as u32;
        self.words[place::PLAIN] = plain as u32;
        self.words[place::BLOCKS] = blocks as u32;
        self.words.extend(asked);
    }

    pub fn spans(&self) -> usize {
        self.spans
    }

    /// How attention takes the rows.
    pub fn attended(&self) -> &Attended {
        &self.attended
    }

    /// The positions of so many rows.
    pub fn positions(&self, rows: usize) -> &[u32] {
        &self.words[HEAD + rows..][..rows]
    }

    /// Words but for what is asked.
    pub fn of_batch(&self) -> usize {
        self.batch
    }

    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// How kernels see a step. Both bindings are of the same words.
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
         fn first_of_tile(i: u32) -> u32 {{ return step_words[step_words[8] + i]; }}\n\
         fn item_at(i: u32) -> Item {{\n    let at = step_words[9] + {ITEM}u * i;\n    return Item(step_words[at], \
         step_words[at + 1u], step_words[at + 2u], step_words[at + 3u], step_words[at + 4u], step_words[at + 5u]);\n}}\n\
         fn split_at(i: u32) -> Split {{\n    let at = step_words[10] + {SPLIT}u * i;\n    return Split(step_words[at], \
         step_words[at + 1u], step_words[at + 2u]);\n}}\n\
         fn angle(at: u32) -> f32 {{ return bitcast<f32>(step_words[step_words[7] + at]); }}\n\
         fn asked(i: u32, word: u32) -> u32 {{ return step_words[step_words[{}] + {ASKED}u * i + word]; }}\n\
         fn asked_plainly() -> u32 {{ return step_words[{}]; }}\n\
         fn asked_blocks() -> u32 {{ return step_words[{}]; }}\n",
        place::ASKED,
        place::PLAIN,
        place::BLOCKS,
    )
}
