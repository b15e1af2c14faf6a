//! A model that is no more than its state: what it says next is a hash of all tokens that its state has seen.
//!
//! Every position of the cache keeps a hash of the tokens up to it, and an answer is made of all positions of the block
//! table that it is given; recurrent state is one such number. So whatever reads a block of somebody else, a stale one or
//! one that a copy left out says something else from there on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use exotherm_kernels::backend::{check_batch, row_of_logits};
use exotherm_kernels::{
    BLOCK, Backend, BackendError, Batch, Executor, Limits, MemoryUse, Place, Program, ProgramBuilder,
    SampleRow, Sampled, Span, sampling,
};

pub const VOCAB: usize = 7;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Kv,
    Recurrent,
    Both,
}

pub fn program(state: State) -> Program {
    let mut builder = ProgramBuilder::new();
    if state != State::Recurrent {
        builder.kv_layer(1, 1);
    }
    if state != State::Kv {
        builder.recurrent(1);
    }
    let logits = builder.logits_buffer(VOCAB);
    builder.finish(logits, VOCAB)
}

/// What of a sequence's tokens the state keeps: a hash of them, and one of all such hashes so far.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Seen {
    tokens: u64,
    all: u64,
}

fn mix(a: u64, b: u64) -> u64 {
    let z = (a ^ b.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(17)
}

impl Seen {
    pub fn and(self, token: u32) -> Seen {
        let tokens = mix(self.tokens, u64::from(token) + 1);
        Seen { tokens, all: mix(self.all, tokens) }
    }

    /// The same of a position of the cache.
    fn and_cell(self, tokens: u64) -> Seen {
        Seen { tokens, all: mix(self.all, tokens) }
    }

    pub fn logits(self) -> [f32; VOCAB] {
        std::array::from_fn(|i| ((self.all >> (8 * i)) & 0xff) as f32 / 32.0)
    }
}

/// How the next step is to fail.
#[derive(Clone, Default)]
pub struct Fault(Arc<AtomicUsize>);

impl Fault {
    pub const RUN_ERROR: usize = 1;
    pub const RUN_PANIC: usize = 2;
    pub const COPY_PANIC: usize = 3;
    pub const SAMPLE_ERROR: usize = 4;
    pub const SAMPLE_PANIC: usize = 5;
    /// One row of logits is no numbers, nor is the state that it came of.
    pub const NOT_NUMBERS: usize = 6;
    /// The number of kinds, one of which is none, after which an engine goes on as it is.
    pub const KINDS: usize = 7;
    /// The device is lost.
    pub const LOST: usize = 7;

    pub fn set(&self, fault: usize) {
        self.0.store(fault, Ordering::Relaxed);
    }

    /// Whether it is to fail in this way, for once.
    fn strikes(&self, fault: usize) -> bool {
        self.0.compare_exchange(fault, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn error() -> Result<(), BackendError> {
        Err(BackendError::Memory { what: "a test", bytes: 0 })
    }

    fn panic() -> ! {
        // Unlike `panic!` this tells nobody.
        std::panic::resume_unwind(Box::new("a test"))
    }
}

/// What a broken backend leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Omission {
    #[default]
    Nothing,
    BlockCopies,
    SlotCopies,
    /// The last position of every span of several is not written.
    LastPositions,
}

#[derive(Default)]
pub struct Fake {
    pub fault: Fault,
    /// Counts the blocks that were copied.
    pub block_copies: Arc<AtomicUsize>,
    pub omits: Omission,
}

impl Backend for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn memory(&self, _program: &Program, _limits: &Limits) -> MemoryUse {
        MemoryUse::default()
    }

    fn compile(&self, program: &Program, limits: &Limits) -> Result<Box<dyn Executor>, BackendError> {
        Ok(Box::new(FakeExecutor {
            program: program.clone(),
            limits: limits.clone(),
            cells: vec![0; limits.blocks * BLOCK],
            slots: vec![Seen::default(); limits.slots],
            logits: Vec::new(),
            fault: self.fault.clone(),
            block_copies: self.block_copies.clone(),
            omits: self.omits,
        }))
    }
}

struct FakeExecutor {
    program: Program,
    limits: Limits,
    cells: Vec<u64>,
    slots: Vec<Seen>,
    logits: Vec<f32>,
    fault: Fault,
    block_copies: Arc<AtomicUsize>,
    omits: Omission,
}

impl FakeExecutor {
    fn cell(table: &[u32], position: usize) -> usize {
        table[position / BLOCK] as usize * BLOCK + position % BLOCK
    }

    /// Runs a span; what is said at each of its rows.
    fn run_span(&mut self, batch: &Batch, span: &Span, mut each: impl FnMut(usize, Seen)) {
        let (has_kv, is_recurrent) = (!self.cells.is_empty(), !self.slots.is_empty());
        let table = batch.block_table(span);
        let before = (0..span.start as usize).take_while(|_| has_kv);
        let mut kv =
            before.fold(Seen::default(), |seen, p| seen.and_cell(self.cells[FakeExecutor::cell(table, p)]));
        let mut state = match is_recurrent && span.start > 0 {
            true => self.slots[span.slot as usize],
            false => Seen::default(),
        };
        for row in span.row_range() {
            let token = batch.tokens()[row];
            if has_kv {
                kv = kv.and(token);
                let is_last = span.rows > 1 && row + 1 == span.row_range().end;
                if !(is_last && self.omits == Omission::LastPositions) {
                    self.cells[FakeExecutor::cell(table, batch.positions()[row] as usize)] = kv.tokens;
                }
            }
            if is_recurrent {
                state = state.and(token);
            }
            // Both are the same unless one is wrong.
            let all = match (has_kv, is_recurrent) {
                (true, true) => Seen { all: if kv == state { kv.all } else { !kv.all }, ..kv },
                (true, false) => kv,
                _ => state,
            };
            each(row, all);
        }
        if is_recurrent {
            self.slots[span.slot as usize] = state;
        }
    }

    fn spoil(&mut self, batch: &Batch) {
        batch.spans().iter().for_each(|span| self.spoil_span(batch, span));
    }

    fn spoil_span(&mut self, batch: &Batch, span: &Span) {
        let has_kv = !self.cells.is_empty();
        for position in (span.start..span.start + span.rows).filter(|_| has_kv) {
            let cell = FakeExecutor::cell(batch.block_table(span), position as usize);
            self.cells[cell] = !0;
        }
        if let Some(state) = self.slots.get_mut(span.slot as usize) {
            *state = Seen { tokens: !0, all: !0 };
        }
    }
}

impl Executor for FakeExecutor {
    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        check_batch(&self.program, &self.limits, batch)?;
        if self.fault.strikes(Fault::RUN_ERROR) {
            self.spoil(batch);
            return Fault::error();
        }
        if self.fault.strikes(Fault::LOST) {
            self.spoil(batch);
            return Err(BackendError::Device("a test".into()));
        }
        if self.fault.strikes(Fault::RUN_PANIC) {
            self.spoil(batch);
            Fault::panic();
        }
        let mut logits = std::mem::take(&mut self.logits);
        logits.clear();
        logits.resize(batch.logit_rows().len() * VOCAB, 0.0);
        for span in batch.spans() {
            self.run_span(batch, span, |row, seen| {
                if let Some(at) = batch.logit_rows().iter().position(|&wanted| wanted as usize == row) {
                    logits[at * VOCAB..][..VOCAB].copy_from_slice(&seen.logits());
                }
            });
        }
        self.logits = logits;
        if !self.logits.is_empty() && self.fault.strikes(Fault::NOT_NUMBERS) {
            let row = batch.rows() % batch.logit_rows().len();
            self.logits[row * VOCAB..][..VOCAB].fill(f32::NAN);
            let row = batch.logit_rows()[row] as usize;
            let of_row = batch.spans().iter().find(|span| span.row_range().contains(&row));
            self.spoil_span(batch, of_row.expect("every row is of a span"));
        }
        Ok(())
    }

    fn sample(&mut self, rows: &[SampleRow], out: &mut Vec<Sampled>) -> Result<(), BackendError> {
        out.clear();
        for row in rows {
            out.push(sampling::reference::sample(self.logits_of(row.logits)?, row));
            if self.fault.strikes(Fault::SAMPLE_PANIC) {
                Fault::panic();
            }
        }
        if self.fault.strikes(Fault::SAMPLE_ERROR) { Fault::error() } else { Ok(()) }
    }

    fn run_ops(&mut self, batch: &Batch, _ops: Range<usize>) -> Result<(), BackendError> {
        self.run(batch)
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn logits_of(&self, row: usize) -> Result<&[f32], BackendError> {
        row_of_logits(&self.program, &self.logits, row)
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        if self.fault.strikes(Fault::COPY_PANIC) {
            Fault::panic();
        }
        self.block_copies.fetch_add(1, Ordering::Relaxed);
        if self.omits == Omission::BlockCopies {
            return;
        }
        let from = from as usize * BLOCK;
        self.cells.copy_within(from..from + BLOCK, to as usize * BLOCK);
    }

    fn copy_slot(&mut self, from: u32, to: u32) {
        if self.fault.strikes(Fault::COPY_PANIC) {
            Fault::panic();
        }
        if self.omits != Omission::SlotCopies {
            self.slots[to as usize] = self.slots[from as usize];
        }
    }

    fn read(&self, _place: Place) -> Vec<f32> {
        Vec::new()
    }

    fn write(&mut self, _place: Place, _values: &[f32]) {}
}
