//! What a backend is: something that compiles a program once and then runs it on batches.

use std::ops::Range;

use crate::batch::{BLOCK, Batch};
use crate::profile::{DeviceWork, OpTime};
use crate::program::{Buf, KvId, Program, RecId};
use crate::rounding::Activations;
use crate::sampling::{self, SampleRow, Sampled};

/// How keys and values are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvType {
    F32,
    F16,
}

impl KvType {
    pub fn bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 => 2,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
        }
    }
}

/// What a compiled program must have room for.
#[derive(Clone, Debug)]
pub struct Limits {
    pub rows: usize,
    pub logit_rows: usize,
    /// Blocks of the KV pool.
    pub blocks: usize,
    /// Slots of recurrent state.
    pub slots: usize,
    pub kv_type: KvType,
}

/// Bytes held by a compiled program.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MemoryUse {
    pub weights: usize,
    pub kv: usize,
    pub recurrent: usize,
    pub scratch: usize,
}

/// Memory of a compiled program that tests and `selfcheck` read and write, always as f32 in canonical order:
/// buffers `[row][width]`, keys and values `[block][kv head][position][head_dim]`, state `[slot][width]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Buffer(Buf),
    Keys(KvId),
    Values(KvId),
    Recurrent(RecId),
}

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("the step has {have} {what}, there is room for {room}")]
    TooMany { what: &'static str, have: usize, room: usize },
    #[error("token {token} is outside the vocabulary of {vocab}")]
    Token { token: u32, vocab: usize },
    #[error("position {position} is past the {limit} that this model holds")]
    Position { position: usize, limit: usize },
    #[error("a sequence reaches position {position} but its block table has room for {room}")]
    BlockTable { position: usize, room: usize },
    #[error("block {block} is outside the pool of {blocks}")]
    Block { block: u32, blocks: usize },
    #[error("state slot {slot} is outside the {slots} there are")]
    Slot { slot: u32, slots: usize },
    #[error("block {0} is written by one part of the step and used by another")]
    SharedBlock(u32),
    #[error("two sequences of the step keep their state in slot {0}")]
    SharedSlot(u32),
    #[error("logits were asked of row {row} in a step of {rows} rows")]
    LogitRow { row: u32, rows: usize },
    #[error("the memory for {what} ({bytes} bytes) could not be had; a smaller --ctx needs less")]
    Memory { what: &'static str, bytes: usize },
    #[error(
        "the GPU has no room for {what}: {} of the {} MiB that are needed were had; a smaller {less} needs less",
        had >> 20,
        need.div_ceil(1 << 20)
    )]
    NoRoom { what: &'static str, had: usize, need: usize, less: &'static str },
    #[error("the GPU failed: {0}")]
    Device(String),
}

pub trait Backend {
    fn name(&self) -> &'static str;

    /// Whether its activations are rounded before they meet weights.
    fn activations(&self) -> Activations {
        Activations::Exact
    }

    /// Whether what it takes is the host's memory.
    fn is_in_host_memory(&self) -> bool {
        true
    }

    /// What a program compiled for `limits` will hold, to the byte, without taking any of it. Sizes past all numbers are
    /// `usize::MAX`.
    fn memory(&self, program: &Program, limits: &Limits) -> MemoryUse;

    /// Lays the weights out for this backend and takes the memory for `limits`.
    fn compile(&self, program: &Program, limits: &Limits) -> Result<Box<dyn Executor>, BackendError>;
}

/// A program compiled for a backend, with its weights and state.
pub trait Executor: Send {
    /// Runs the ops of this range on the batch; `run` runs them all.
    fn run_ops(&mut self, batch: &Batch, ops: Range<usize>) -> Result<(), BackendError>;

    fn run(&mut self, batch: &Batch) -> Result<(), BackendError>;

    /// The logits of the last run, one row of vocabulary width for each wanted row.
    fn logits(&self) -> &[f32];

    /// One row of them, without what is no token: `vocab` of the program where the rows are wider.
    fn logits_of(&self, row: usize) -> Result<&[f32], BackendError>;

    /// Chooses a token for each of these rows by the logits of the last run, and leaves it in `out`. Every backend chooses the
    /// tokens that the reference does, whatever other rows there are.
    fn sample(&mut self, rows: &[SampleRow], out: &mut Vec<Sampled>) -> Result<(), BackendError> {
        out.clear();
        for row in rows {
            out.push(sampling::reference::sample(self.logits_of(row.logits)?, row));
        }
        Ok(())
    }

    fn memory(&self) -> MemoryUse;

    /// Makes block `to` of the cache a copy of block `from`, in all layers.
    fn copy_block(&mut self, from: u32, to: u32);

    /// Makes slot `to` of the recurrent state a copy of slot `from`, in all layers.
    fn copy_slot(&mut self, from: u32, to: u32);

    /// Whether the next runs are timed op by op. Off, as at first, timing costs nothing. An executor that cannot tell
    /// its ops apart ignores it.
    fn set_profiling(&mut self, _on: bool) {}

    /// What each op of the program took in the last run, in the program's order; nothing while profiling is off.
    fn op_times(&self) -> &[OpTime] {
        &[]
    }

    /// What was handed to a device of its own; nothing where there is none.
    fn device_work(&self) -> DeviceWork {
        DeviceWork::default()
    }

    /// The rows of the last batch (buffers) or the whole of a state, decoded to f32.
    fn read(&self, place: Place) -> Vec<f32>;

    /// The same where a device may fail to give it.
    fn fetch(&self, place: Place) -> Result<Vec<f32>, BackendError> {
        Ok(self.read(place))
    }

    /// Writes from the start of a place; values are rounded to how the place stores them.
    fn write(&mut self, place: Place, values: &[f32]);
}

/// A row of logits, as long as there are tokens; every executor finds its rows with it.
pub fn row_of_logits<'a>(
    program: &Program,
    logits: &'a [f32],
    row: usize,
) -> Result<&'a [f32], BackendError> {
    let width = program.buffer(program.logits()).width;
    let rows = logits.len() / width;
    match logits.chunks_exact(width).nth(row) {
        Some(logits) => Ok(&logits[..width.min(program.vocab())]),
        None => Err(BackendError::LogitRow { row: u32::try_from(row).unwrap_or(u32::MAX), rows }),
    }
}

/// Checks a batch against a program and its limits; every backend runs it first, so that kernels may trust indices.
pub fn check_batch(program: &Program, limits: &Limits, batch: &Batch) -> Result<(), BackendError> {
    let too_many = |what, have, room| Err(BackendError::TooMany { what, have, room });
    if batch.rows() > limits.rows {
        return too_many("rows", batch.rows(), limits.rows);
    }
    if batch.logit_rows().len() > limits.logit_rows {
        return too_many("rows that want logits", batch.logit_rows().len(), limits.logit_rows);
    }
    if let Some(&token) = batch.tokens().iter().find(|&&t| t as usize >= program.vocab()) {
        return Err(BackendError::Token { token, vocab: program.vocab() });
    }
    if let Some(&row) = batch.logit_rows().iter().find(|&&r| r as usize >= batch.rows()) {
        return Err(BackendError::LogitRow { row, rows: batch.rows() });
    }
    for span in batch.spans() {
        let end = span.start as usize + span.rows as usize;
        let last = end.saturating_sub(1);
        // Positions are numbers of 32 bits even where a model sets no limit of its own.
        let limit = program.max_positions().unwrap_or(u32::MAX as usize);
        if end > limit {
            return Err(BackendError::Position { position: last, limit });
        }
        if !program.state().kv.is_empty() {
            let room = span.blocks as usize * BLOCK;
            if end > room {
                return Err(BackendError::BlockTable { position: last, room });
            }
            let table = batch.block_table(span);
            if let Some(&block) = table.iter().find(|&&b| b as usize >= limits.blocks) {
                return Err(BackendError::Block { block, blocks: limits.blocks });
            }
        }
        if !program.state().recurrent.is_empty() && span.slot as usize >= limits.slots {
            return Err(BackendError::Slot { slot: span.slot, slots: limits.slots });
        }
    }
    check_sharing(program, limits, batch)
}

/// Rows of a step run side by side, so what one span writes no other may write or read; nor may a block come twice
/// in a span's own table where it is written.
fn check_sharing(program: &Program, limits: &Limits, batch: &Batch) -> Result<(), BackendError> {
    if !program.state().kv.is_empty() {
        let table = |span, blocks: Range<usize>| batch.block_table(span)[blocks].iter().copied();
        let written = batch.spans().iter().flat_map(|span| {
            let end = (span.start as usize + span.rows as usize).div_ceil(BLOCK);
            let start = if span.rows == 0 { end } else { span.start as usize / BLOCK };
            table(span, start..end)
        });
        let read = batch.spans().iter().flat_map(|span| table(span, 0..span.start as usize / BLOCK));
        if let Some(block) = first_shared(written, read, limits.blocks) {
            return Err(BackendError::SharedBlock(block));
        }
    }
    if !program.state().recurrent.is_empty() {
        let slots = batch.spans().iter().map(|span| span.slot);
        if let Some(slot) = first_shared(slots, std::iter::empty(), limits.slots) {
            return Err(BackendError::SharedSlot(slot));
        }
    }
    Ok(())
}

/// The first number under `limit` that is written twice, or written and read. The numbers are gone through once for
/// every 32,768 there may be, with a bitmap on the stack, so that a step allocates nothing.
fn first_shared(
    written: impl Iterator<Item = u32> + Clone,
    read: impl Iterator<Item = u32> + Clone,
    limit: usize,
) -> Option<u32> {
    const WORDS: usize = 512;
    (0..limit).step_by(64 * WORDS).find_map(|base| {
        let mut seen = [0u64; WORDS];
        let place = |number: u32| {
            let at = (number as usize).checked_sub(base).filter(|&at| at < 64 * WORDS)?;
            Some((at / 64, 1u64 << (at % 64)))
        };
        let twice = written.clone().find(|&number| {
            place(number).is_some_and(|(word, bit)| {
                let before = seen[word];
                seen[word] |= bit;
                before & bit != 0
            })
        });
        twice.or_else(|| read.clone().find(|&n| place(n).is_some_and(|(word, bit)| seen[word] & bit != 0)))
    })
}
