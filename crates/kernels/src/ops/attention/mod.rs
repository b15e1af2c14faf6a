//! Paged causal attention in one pass over the block table: QK^T, online softmax, A·V.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{check_vector, check_width};
use crate::program::{Buf, KvId, KvLayer, MatId, Program, VecId};

#[derive(Clone, Debug)]
pub struct Attention {
    /// Rows that begin with all Q heads (K and V behind them are not read: they are in the cache).
    pub qkv: Buf,
    pub heads: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// A row sees itself and the `window - 1` positions before it; `None`: all before it.
    pub window: Option<usize>,
    /// Scores become cap · tanh(score / cap).
    pub soft_cap: Option<f32>,
    /// One extra logit per head that takes part in the softmax's sum and brings no value.
    pub sinks: Option<VecId>,
    pub kv: KvId,
    pub out: Buf,
}

impl Attention {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.qkv);
        f(self.out);
    }

    pub(super) fn result(&self) -> Buf {
        self.out
    }

    pub(crate) fn layer(&self, program: &Program) -> KvLayer {
        program.state().kv[self.kv.0 as usize]
    }

    /// The first position that a row at `position` sees.
    pub(crate) fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let KvLayer { kv_heads, head_dim } = self.layer(program);
        if kv_heads == 0 || !self.heads.is_multiple_of(kv_heads) {
            return Err(format!("{} heads do not share {kv_heads} KV heads evenly", self.heads));
        }
        check_width(program, self.qkv, (self.heads + 2 * kv_heads) * head_dim)?;
        check_width(program, self.out, self.heads * head_dim)?;
        if self.window == Some(0) {
            return Err("a window of 0 sees nothing".into());
        }
        match self.sinks {
            Some(sinks) => check_vector(program, sinks, self.heads, "sinks"),
            None => Ok(()),
        }
    }

    pub(super) fn for_each_matrix(&self, _program: &Program, _f: &mut dyn FnMut(MatId, usize)) {}
}
