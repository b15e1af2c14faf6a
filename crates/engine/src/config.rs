//! How large an engine is to be, and the memory it will take, known before any of it is taken.

use std::fmt;

use exotherm_kernels::{BLOCK, Backend, KvType, Limits, Program};

use crate::error::EngineError;

#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Tokens that a sequence may have, prompt and answer together.
    pub ctx: usize,
    /// Sequences that run at a time.
    pub max_seqs: usize,
    /// Requests that may wait while so many run.
    pub queue: usize,
    /// Rows of a step: the decodes of running sequences first, prompts with what is left.
    pub chunk: usize,
    /// Rows of a step whose logits may be wanted (one per sequence at least).
    pub logit_rows: usize,
    pub kv_type: KvType,
    /// Blocks of the KV cache; `None`: as many as all sequences need with full contexts. With fewer, sequences make room
    /// for one another, with more, more is remembered.
    pub blocks: Option<usize>,
    /// Recurrent states that are remembered.
    pub snapshots: usize,
    /// Tokens of a prompt from one remembered state to the next, whole blocks; 0: only the last is remembered.
    pub snapshot_stride: usize,
}

impl EngineConfig {
    /// One sequence of `ctx` tokens, prompts in chunks of 48, an f16 cache.
    pub fn new(ctx: usize) -> EngineConfig {
        EngineConfig {
            ctx,
            max_seqs: 1,
            queue: 64,
            chunk: 48,
            logit_rows: 1,
            kv_type: KvType::F16,
            blocks: None,
            snapshots: 4,
            snapshot_stride: 512,
        }
    }

    /// Sequences that a server runs at a time unless it is told otherwise.
    pub const SERVING_SEQS: usize = 16;

    /// `max_seqs` sequences of `ctx` tokens; however many of them write, at least half of a step is left for prompts. A few
    /// rows of logits make it worth while to read a prompt of which every token is asked for, even in a small server. Each
    /// sequence has a state at the end of its prompt and one that moves along with its answer: two snapshots for each.
    /// Those on the way through prompts have the places that these leave.
    pub fn serving(ctx: usize, max_seqs: usize) -> EngineConfig {
        EngineConfig {
            max_seqs,
            chunk: max_seqs.min(ctx).saturating_mul(2).max(64),
            logit_rows: Self::SERVING_SEQS,
            snapshots: max_seqs.saturating_mul(2),
            ..EngineConfig::new(ctx)
        }
    }

    /// The same with what `bytes` of memory have room for: as many KV blocks as fit, after as many snapshots as were
    /// asked for, or else as fit. Where not even one sequence has room for its context, the error says what it takes.
    pub fn within(
        mut self,
        bytes: usize,
        program: &Program,
        backend: &dyn Backend,
    ) -> Result<EngineConfig, EngineError> {
        self.limits(program, backend)?;
        let wanted_snapshots = self.snapshots;
        (self.snapshots, self.blocks) = (0, Some(self.ctx.div_ceil(BLOCK)));
        let fits = |config: &EngineConfig| MemoryPlan::new(program, backend, config).total() <= bytes;
        if !fits(&self) {
            let (ctx, max_seqs) = (self.ctx, self.max_seqs);
            let least = MemoryPlan::new(program, backend, &self);
            return Err(EngineError::Budget { budget: bytes, ctx, max_seqs, least, beside: 0 });
        }
        self.snapshots =
            most(0, wanted_snapshots, |snapshots| fits(&EngineConfig { snapshots, ..self.clone() }));
        if self.has_kv(program) {
            let least = self.ctx.div_ceil(BLOCK);
            let fits = |blocks| fits(&EngineConfig { blocks: Some(blocks), ..self.clone() });
            self.blocks = Some(most(least, u32::MAX as usize / BLOCK, fits));
        }
        Ok(self)
    }

    /// Rows of the largest step: every sequence can decode, and no step has more rows than there are
    /// positions.
    pub(crate) fn rows(&self) -> usize {
        self.chunk.max(self.max_seqs).min(self.ctx.saturating_mul(self.max_seqs))
    }

    fn logit_rows(&self) -> usize {
        self.logit_rows.max(self.max_seqs).min(self.rows())
    }

    fn has_kv(&self, program: &Program) -> bool {
        !program.state().kv.is_empty()
    }

    /// What the backend must have room for, as far as numbers go.
    fn saturating_limits(&self, program: &Program) -> Limits {
        let full = self.ctx.div_ceil(BLOCK).saturating_mul(self.max_seqs);
        let is_recurrent = !program.state().recurrent.is_empty();
        Limits {
            rows: self.rows(),
            logit_rows: self.logit_rows(),
            blocks: if self.has_kv(program) { self.blocks.unwrap_or(full) } else { 0 },
            slots: if is_recurrent { self.max_seqs.saturating_add(self.snapshots) } else { 0 },
            kv_type: self.kv_type,
        }
    }

    /// What the backend must have room for.
    pub(crate) fn limits(&self, program: &Program, backend: &dyn Backend) -> Result<Limits, EngineError> {
        let must = |fine, name, value, must| match fine {
            true => Ok(()),
            false => Err(EngineError::Config { name, value, must }),
        };
        let positive = |name, value| must(value > 0, name, value, "at least 1");
        positive("ctx", self.ctx)?;
        positive("max_seqs", self.max_seqs)?;
        positive("chunk", self.chunk)?;
        positive("logit_rows", self.logit_rows)?;
        positive("blocks", self.blocks.unwrap_or(1))?;
        let stride = self.snapshot_stride;
        must(stride.is_multiple_of(BLOCK), "snapshot_stride", stride, "whole blocks of 16")?;
        if let Some(limit) = program.max_positions().filter(|&limit| self.ctx > limit) {
            return Err(EngineError::Context { ctx: self.ctx, limit });
        }
        let limits = self.saturating_limits(program);
        let positions = limits.blocks.saturating_mul(BLOCK);
        let indexed_by_u32 = [self.ctx, self.max_seqs, limits.rows, positions, limits.slots];
        let too_large = indexed_by_u32.into_iter().any(|n| u32::try_from(n).is_err());
        if too_large || isize::try_from(MemoryPlan::new(program, backend, self).total()).is_err() {
            return Err(EngineError::Memory { ctx: self.ctx, max_seqs: self.max_seqs });
        }
        Ok(limits)
    }
}

/// The largest number from `least` to `limit` that fits; `least` does, and of two numbers the smaller if the larger does.
fn most(least: usize, limit: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut fitting, mut too_large) = (least, limit.saturating_add(1));
    while too_large - fitting > 1 {
        let middle = fitting + (too_large - fitting) / 2;
        if fits(middle) { fitting = middle } else { too_large = middle }
    }
    fitting
}

/// The bytes an engine will take. Sums that cannot be addressed end at `usize::MAX`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryPlan {
    pub weights: usize,
    pub kv: usize,
    /// Blocks of 16 tokens that the KV cache has, whoever they are of.
    pub kv_blocks: usize,
    pub kv_bytes_per_token: usize,
    /// Recurrent state of the sequences that run.
    pub recurrent: usize,
    /// Recurrent states that are remembered.
    pub snapshots: usize,
    /// How many.
    pub snapshot_states: usize,
    /// Activations of the largest step, and what ops make on the way.
    pub scratch: usize,
}

impl MemoryPlan {
    /// What the backend says that it will take.
    pub fn new(program: &Program, backend: &dyn Backend, config: &EngineConfig) -> MemoryPlan {
        let limits = config.saturating_limits(program);
        let taken = backend.memory(program, &limits);
        let snapshot_states = config.snapshots.min(limits.slots);
        let snapshots = snapshot_states as u128 * taken.recurrent as u128;
        let snapshots = (snapshots / limits.slots.max(1) as u128) as usize;
        let positions = limits.blocks.saturating_mul(BLOCK).max(1);
        MemoryPlan {
            weights: taken.weights,
            kv: taken.kv,
            kv_blocks: limits.blocks,
            kv_bytes_per_token: taken.kv.div_ceil(positions),
            recurrent: taken.recurrent - snapshots,
            snapshots,
            snapshot_states,
            scratch: taken.scratch,
        }
    }

    /// Tokens that the KV cache has room for, of all sequences together.
    pub fn kv_tokens(&self) -> usize {
        self.kv_blocks.saturating_mul(BLOCK)
    }

    pub fn total(&self) -> usize {
        let parts = [self.weights, self.kv, self.recurrent, self.snapshots, self.scratch];
        parts.into_iter().fold(0, usize::saturating_add)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        writeln!(f, "weights    {:10.1} MiB", mib(self.weights))?;
        write!(f, "KV cache   {:10.1} MiB", mib(self.kv))?;
        if self.kv_blocks > 0 {
            let (blocks, tokens) = (self.kv_blocks, self.kv_tokens());
            write!(f, "  {blocks} blocks, {tokens} tokens, {} bytes per token", self.kv_bytes_per_token)?;
        }
        writeln!(f, "\nrecurrent  {:10.1} MiB", mib(self.recurrent))?;
        write!(f, "snapshots  {:10.1} MiB", mib(self.snapshots))?;
        if self.snapshot_states > 0 {
            write!(f, "  {} states", self.snapshot_states)?;
        }
        writeln!(f)?;
        writeln!(f, "scratch    {:10.1} MiB", mib(self.scratch))?;
        write!(f, "total      {:10.1} MiB", mib(self.total()))
    }
}
