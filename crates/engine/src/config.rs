//! How large an engine is to be, and the memory it will take, known before any of it is taken.

use std::fmt;

use exotherm_kernels::{BLOCK, KvType, Limits, Program};

use crate::error::EngineError;

#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Tokens that a sequence may have, prompt and answer together.
    pub ctx: usize,
    /// Sequences that are running or held at a time.
    pub max_seqs: usize,
    /// Rows of a step: the decodes of running sequences first, prompts with what is left.
    pub chunk: usize,
    /// Rows of a step whose logits may be wanted (one per sequence at least).
    pub logit_rows: usize,
    pub kv_type: KvType,
}

impl EngineConfig {
    /// One sequence of `ctx` tokens, prompts in chunks of 48, an f16 cache.
    pub fn new(ctx: usize) -> EngineConfig {
        EngineConfig { ctx, max_seqs: 1, chunk: 48, logit_rows: 1, kv_type: KvType::F16 }
    }

    /// Rows of the largest step: every sequence can decode, and no step has more rows than there are
    /// positions.
    pub(crate) fn rows(&self) -> usize {
        self.chunk.max(self.max_seqs).min(self.ctx.saturating_mul(self.max_seqs))
    }

    fn logit_rows(&self) -> usize {
        self.logit_rows.max(self.max_seqs).min(self.rows())
    }

    fn blocks(&self, program: &Program) -> usize {
        match program.state().kv.is_empty() {
            true => 0,
            false => self.ctx.div_ceil(BLOCK).saturating_mul(self.max_seqs),
        }
    }

    fn slots(&self, program: &Program) -> usize {
        if program.state().recurrent.is_empty() { 0 } else { self.max_seqs }
    }

    /// What the backend must have room for.
    pub(crate) fn limits(&self, program: &Program) -> Result<Limits, EngineError> {
        let positive = |name, value| match value {
            0 => Err(EngineError::Config { name, value, must: "at least 1" }),
            _ => Ok(()),
        };
        positive("ctx", self.ctx)?;
        positive("max_seqs", self.max_seqs)?;
        positive("chunk", self.chunk)?;
        positive("logit_rows", self.logit_rows)?;
        if let Some(limit) = program.max_positions().filter(|&limit| self.ctx > limit) {
            return Err(EngineError::Context { ctx: self.ctx, limit });
        }
        let indexed_by_u32 = [self.ctx, self.max_seqs, self.rows(), self.blocks(program)];
        let too_large = indexed_by_u32.into_iter().any(|n| u32::try_from(n).is_err());
        if too_large || isize::try_from(MemoryPlan::new(program, self).total()).is_err() {
            return Err(EngineError::Memory { ctx: self.ctx, max_seqs: self.max_seqs });
        }
        Ok(Limits {
            rows: self.rows(),
            logit_rows: self.logit_rows(),
            blocks: self.blocks(program),
            slots: self.slots(program),
            kv_type: self.kv_type,
        })
    }
}

/// The bytes an engine will take. Sums that cannot be addressed end at `usize::MAX`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryPlan {
    pub weights: usize,
    pub kv: usize,
    pub kv_bytes_per_token: usize,
    /// Recurrent state of all sequences.
    pub recurrent: usize,
    /// Activations of the largest step.
    pub scratch: usize,
}

impl MemoryPlan {
    pub fn new(program: &Program, config: &EngineConfig) -> MemoryPlan {
        let kv_bytes_per_token = program.state().kv_elements_per_token() * config.kv_type.bytes();
        let positions = config.blocks(program).saturating_mul(BLOCK);
        let (per_row, per_logit_row) = program.scratch_widths();
        let scratch = per_row
            .saturating_mul(config.rows())
            .saturating_add(per_logit_row.saturating_mul(config.logit_rows()));
        let recurrent = program.state().recurrent_elements_per_slot().saturating_mul(config.slots(program));
        MemoryPlan {
            weights: program.weight_bytes(),
            kv: kv_bytes_per_token.saturating_mul(positions),
            kv_bytes_per_token,
            recurrent: recurrent.saturating_mul(size_of::<f32>()),
            scratch: scratch.saturating_mul(size_of::<f32>()),
        }
    }

    pub fn total(&self) -> usize {
        self.weights.saturating_add(self.kv).saturating_add(self.recurrent).saturating_add(self.scratch)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "weights    {:10.1} MiB", mib(self.weights))?;
        writeln!(f, "KV cache   {:10.1} MiB  {} bytes per token", mib(self.kv), self.kv_bytes_per_token)?;
        writeln!(f, "recurrent  {:10.1} MiB", mib(self.recurrent))?;
        writeln!(f, "scratch    {:10.1} MiB", mib(self.scratch))?;
        write!(f, "total      {:10.1} MiB", mib(self.total()))
    }
}
