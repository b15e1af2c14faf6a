//! Logits of given tokens, with no requests and no sampling: for looking at a model rather than talking to
//! it.

use exotherm_kernels::{BLOCK, Backend, Batch, Executor, Program};

use crate::config::EngineConfig;
use crate::error::EngineError;
use crate::request::check_tokens;

/// A program compiled for one sequence, which every call begins anew.
pub struct Evaluator {
    program: Program,
    executor: Box<dyn Executor>,
    batch: Batch,
    block_table: Vec<u32>,
    ctx: usize,
    /// Rows of a step, and those of them whose logits may be wanted.
    chunk: usize,
    logit_rows: usize,
}

impl Evaluator {
    /// Room for `config.ctx` tokens, run in chunks of `config.chunk`; at most `config.logit_rows` rows of
    /// logits are in memory at a time.
    pub fn new(
        program: &Program,
        backend: &dyn Backend,
        config: &EngineConfig,
    ) -> Result<Evaluator, EngineError> {
        let config = EngineConfig { max_seqs: 1, blocks: None, snapshots: 0, ..config.clone() };
        let limits = config.limits(program, backend)?;
        Ok(Evaluator {
            executor: backend.compile(program, &limits)?,
            program: program.without_weights(&|_| false),
            batch: Batch::with_capacity(limits.rows, 1, limits.blocks),
            block_table: Vec::with_capacity(limits.blocks),
            ctx: config.ctx,
            chunk: limits.rows,
            logit_rows: limits.logit_rows,
        })
    }

    /// Runs `tokens` from an empty state and hands the logits at each of `positions` to `each`, in ascending
    /// order.
    pub fn logits(
        &mut self,
        tokens: &[u32],
        positions: &[usize],
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check(tokens)?;
        let mut wanted = positions.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        if let Some(&position) = wanted.last().filter(|&&last| last >= tokens.len()) {
            return Err(EngineError::Position { position, tokens: tokens.len() });
        }
        let (mut start, mut wanted) = (0, wanted.as_slice());
        while let Some(&last) = wanted.last() {
            let step = Step::new(start, last + 1, wanted, self.chunk, self.logit_rows);
            self.load(tokens, &step);
            self.executor.run(&self.batch)?;
            self.each_row(&step, &mut each);
            (start, wanted) = (step.end, &wanted[step.wanted.len()..]);
        }
        Ok(())
    }

    pub fn program(&self) -> &Program {
        &self.program
    }

    pub fn executor(&mut self) -> &mut dyn Executor {
        self.executor.as_mut()
    }

    pub(crate) fn check(&self, tokens: &[u32]) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if tokens.len() > self.ctx {
            return Err(EngineError::TooManyTokens { tokens: tokens.len(), ctx: self.ctx });
        }
        check_tokens(tokens, self.program.vocab())
    }

    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.ctx, self.chunk, self.logit_rows)
    }

    /// Makes the step of these tokens the batch.
    pub(crate) fn load(&mut self, tokens: &[u32], step: &Step) {
        if !self.program.state().kv.is_empty() {
            self.block_table.clear();
            self.block_table.extend(0..step.end.div_ceil(BLOCK) as u32);
        }
        self.batch.clear();
        self.batch.push_span(&tokens[step.start..step.end], step.start as u32, &self.block_table, 0);
        for position in step.wanted {
            self.batch.want_logits((position - step.start) as u32);
        }
    }

    pub(crate) fn run_op(&mut self, op: usize) -> Result<(), EngineError> {
        Ok(self.executor.run_ops(&self.batch, op..op + 1)?)
    }

    pub(crate) fn run(&mut self) -> Result<(), EngineError> {
        Ok(self.executor.run(&self.batch)?)
    }

    /// The logits of the last step, a row for each position that it wanted.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.executor.logits().chunks_exact(self.program.buffer(self.program.logits()).width)
    }

    fn each_row(&self, step: &Step, each: &mut impl FnMut(usize, &[f32])) {
        step.wanted.iter().zip(self.rows()).for_each(|(&position, row)| each(position, row));
    }
}

/// Positions `start..end` of the sequence, and those of them whose logits are wanted.
pub(crate) struct Step<'a> {
    pub start: usize,
    pub end: usize,
    pub wanted: &'a [usize],
}

impl Step<'_> {
    /// The longest step from `start` towards `end` of at most `chunk` rows and `logit_rows` wanted ones;
    /// `wanted` ascends from `start` or later.
    pub fn new(start: usize, end: usize, wanted: &[usize], chunk: usize, logit_rows: usize) -> Step<'_> {
        let end = end.min(start + chunk);
        let end = wanted.get(logit_rows).map_or(end, |&first_too_many| end.min(first_too_many));
        let n = wanted.partition_point(|&position| position < end);
        Step { start, end, wanted: &wanted[..n] }
    }
}

/// log(Σ exp(logit)) in f64.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    max + logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln()
}
