//! One step's work as flat arrays: which tokens at which positions of which sequences.

/// Positions in a block of the paged KV cache.
pub const BLOCK: usize = 16;

/// A run of consecutive rows that belong to one sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Index of its first row in the batch.
    pub first_row: u32,
    pub rows: u32,
    /// Position in the sequence of its first row; a span that starts at 0 finds its recurrent state zeroed.
    pub start: u32,
    /// Where its block table begins in the batch's `block_tables`.
    pub table_at: u32,
    /// Entries of its block table.
    pub blocks: u32,
    /// Its slot of recurrent state.
    pub slot: u32,
}

impl Span {
    pub fn row_range(&self) -> std::ops::Range<usize> {
        self.first_row as usize..(self.first_row + self.rows) as usize
    }
}

/// The rows of one step. Reused from step to step, so that a steady state allocates nothing.
#[derive(Clone, Default, Debug)]
pub struct Batch {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    span_of_row: Vec<u32>,
    spans: Vec<Span>,
    block_tables: Vec<u32>,
    logit_rows: Vec<u32>,
}

impl Batch {
    /// A batch with room for `rows` rows in `spans` spans whose block tables have `blocks` entries together.
    pub fn with_capacity(rows: usize, spans: usize, blocks: usize) -> Batch {
        Batch {
            tokens: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            span_of_row: Vec::with_capacity(rows),
            spans: Vec::with_capacity(spans),
            block_tables: Vec::with_capacity(blocks),
            logit_rows: Vec::with_capacity(rows),
        }
    }

    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.span_of_row.clear();
        self.spans.clear();
        self.block_tables.clear();
        self.logit_rows.clear();
    }

    /// Adds `tokens` at positions `start..` of the sequence with this block table and slot; returns the first row.
    pub fn push_span(&mut self, tokens: &[u32], start: u32, block_table: &[u32], slot: u32) -> u32 {
        let first_row = self.tokens.len() as u32;
        self.spans.push(Span {
            first_row,
            rows: tokens.len() as u32,
            start,
            table_at: self.block_tables.len() as u32,
            blocks: block_table.len() as u32,
            slot,
        });
        self.block_tables.extend_from_slice(block_table);
        let span = self.spans.len() as u32 - 1;
        for (i, &token) in tokens.iter().enumerate() {
            self.tokens.push(token);
            // A position past all numbers is refused when the batch is checked.
            self.positions.push(start.saturating_add(i as u32));
            self.span_of_row.push(span);
        }
        first_row
    }

    /// Asks for the logits of `row`. Rows are asked for in the order in which the logits are to lie.
    pub fn want_logits(&mut self, row: u32) {
        self.logit_rows.push(row);
    }

    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    pub fn span_of(&self, row: usize) -> &Span {
        &self.spans[self.span_of_row[row] as usize]
    }

    pub fn logit_rows(&self) -> &[u32] {
        &self.logit_rows
    }

    pub fn block_table(&self, span: &Span) -> &[u32] {
        &self.block_tables[span.table_at as usize..(span.table_at + span.blocks) as usize]
    }

    pub fn block_entries(&self) -> usize {
        self.block_tables.len()
    }
}
