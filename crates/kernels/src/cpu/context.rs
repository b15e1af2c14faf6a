//! What a step of a compiled program sees when it runs.

use std::ops::Range;

use super::clock::Clock;
use super::memory::{LaneMemory, Memory};
use super::pack::{Tiles, share};
use super::rows;
use super::simd::{Level, WIDTH};
use crate::backend::BackendError;
use crate::batch::{BLOCK, Batch, Span};
use crate::ops::Op;
use crate::program::{Buf, Program, RecId, Rows};

/// One op of a compiled program.
///
/// A stage runs on every lane at once; a barrier follows it. The soundness of the shared memory rests on two rules
/// that every stage keeps: an element that a lane writes is touched by no other lane in that stage, and which lane
/// writes what is decided by [`Lane`]'s shares, which are disjoint. An op's buffers never share memory with one
/// another, because all are alive while it runs.
pub(crate) trait CpuOp: Send + Sync {
    fn stages(&self, cx: &Ctx) -> usize;
    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane);
}

/// A compiled step, or why there is none.
pub(crate) type Prepared = Result<Box<dyn CpuOp>, BackendError>;

pub(crate) struct Ctx<'a> {
    pub program: &'a Program,
    pub batch: &'a Batch,
    pub level: Level,
    pub memory: &'a Memory,
}

/// A lane and its own scratch.
pub(crate) struct Lane<'a> {
    pub id: usize,
    pub of: usize,
    pub normed: &'a mut [f32],
    pub row_words: &'a mut [u32],
    pub gathered: &'a mut [u32],
    pub gathered_floats: &'a mut [f32],
    pub tiles: Tiles<'a>,
    pub work: &'a mut [f32],
    pub words: &'a mut [u32],
    pub clock: Clock,
}

impl<'a> Lane<'a> {
    /// # Safety
    /// `memory` is this lane's, and nothing else borrows from it.
    pub unsafe fn new(id: usize, of: usize, memory: &'a LaneMemory) -> Lane<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            Lane {
                id,
                of,
                normed: memory.normed.slice_mut(0..memory.normed.len()),
                row_words: memory.row_words.slice_mut(0..memory.row_words.len()),
                gathered: memory.gathered.slice_mut(0..memory.gathered.len()),
                gathered_floats: memory.gathered_floats.slice_mut(0..memory.gathered_floats.len()),
                tiles: Tiles {
                    whole: memory.whole.slice_mut(0..memory.whole.len()),
                    tile: memory.tile.slice_mut(0..memory.tile.len()),
                },
                work: memory.work.slice_mut(0..memory.work.len()),
                words: memory.words.slice_mut(0..memory.words.len()),
                clock: Clock::default(),
            }
        }
    }

    /// This lane's part of `n` items.
    pub fn items(&self, n: usize) -> Range<usize> {
        share(n, 1, self.id, self.of)
    }

    /// This lane's part of `n` columns, of whole panels where the weights are packed so.
    pub fn columns(&self, n: usize) -> Range<usize> {
        share(n, WIDTH, self.id, self.of)
    }
}

impl<'a> Ctx<'a> {
    pub fn vector(&self, id: crate::program::VecId) -> &'a [f32] {
        self.program.vector(id)
    }

    /// Rows that a buffer has in this step.
    pub fn rows_of(&self, buf: Buf) -> usize {
        match self.program.buffer(buf).rows {
            Rows::Batch => self.batch.rows(),
            Rows::Logits => self.batch.logit_rows().len(),
        }
    }

    fn slot(&self, buf: Buf) -> &'a super::memory::Shared<f32> {
        let slot = self.program.plan().slot_of(buf).expect("a buffer of an op has a slot");
        &self.memory.slots[slot]
    }

    /// All rows of a buffer.
    ///
    /// # Safety
    /// No lane writes the buffer in this stage.
    pub unsafe fn rows(&self, buf: Buf) -> rows::Rows<'a> {
        let (n, width) = (self.rows_of(buf), self.program.buffer(buf).width);
        // SAFETY: the caller's promise.
        rows::Rows::new(unsafe { self.slot(buf).slice(0..n * width) }, width, width, n)
    }

    /// These columns of a row of a buffer.
    ///
    /// # Safety
    /// No other lane reads or writes them in this stage, and this one through no other slice.
    pub unsafe fn columns(&self, buf: Buf, row: usize, columns: Range<usize>) -> &'a mut [f32] {
        let at = row * self.program.buffer(buf).width;
        // SAFETY: the caller's promise.
        unsafe { self.slot(buf).slice_mut(at + columns.start..at + columns.end) }
    }

    /// A whole row of a buffer.
    ///
    /// # Safety
    /// As for `columns`.
    pub unsafe fn row_mut(&self, buf: Buf, row: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.columns(buf, row, 0..self.program.buffer(buf).width) }
    }

    /// These elements of a sequence's recurrent state.
    ///
    /// # Safety
    /// As for `columns`.
    pub unsafe fn state(&self, id: RecId, span: &Span, part: Range<usize>) -> &'a mut [f32] {
        let at = span.slot as usize * self.program.state().recurrent[id.0 as usize];
        // SAFETY: the caller's promise.
        unsafe { self.memory.recurrent[id.0 as usize].slice_mut(at + part.start..at + part.end) }
    }

    /// The block of the pool that holds a position of a sequence.
    pub fn block_of(&self, span: &Span, position: usize) -> usize {
        self.batch.block_table(span)[position / BLOCK] as usize
    }
}

/// The step that an op becomes.
pub(super) fn prepare(op: &Op, packer: &mut super::pack::Packer) -> Prepared {
    use crate::ops;
    match op {
        Op::Embed(op) => ops::embed::cpu::prepare(op, packer),
        Op::RopeTable(op) => ops::rope_table::cpu::prepare(op),
        Op::NormLinear(op) => ops::norm_linear::cpu::prepare(op, packer),
        Op::QkRopeWrite(op) => ops::qk_rope_write::cpu::prepare(op, packer),
        Op::Attention(op) => ops::attention::cpu::prepare(op, packer),
        Op::LinearResidual(op) => ops::linear_residual::cpu::prepare(op, packer),
        Op::MoeRoute(op) => ops::moe_route::cpu::prepare(op, packer),
        Op::MoeGateUp(op) => ops::moe_gate_up::cpu::prepare(op, packer),
        Op::MoeDown(op) => ops::moe_down::cpu::prepare(op, packer),
        Op::ShiftMix(op) => ops::shift_mix::cpu::prepare(op, packer),
        Op::GroupedLinear(op) => ops::grouped_linear::cpu::prepare(op, packer),
        Op::Lora(op) => ops::lora::cpu::prepare(op, packer),
        Op::TimeMix(op) => ops::time_mix::cpu::prepare(op, packer),
        Op::ChannelMix(op) => ops::channel_mix::cpu::prepare(op, packer),
        Op::Head(op) => ops::head::cpu::prepare(op, packer),
    }
}
