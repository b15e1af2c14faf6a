//! QK-norm + rotary embedding of Q (in place) and K + write of K and V into the paged cache.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{Norm, check_width};
use crate::program::{Buf, KvId, KvLayer, MatId, Program};

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RopeStyle {
    /// Element i with element i + dims/2 (GPT-NeoX, most checkpoints).
    Halves,
    /// Element 2i with element 2i + 1 (Llama's GGUF files, whose Q and K rows are permuted for it).
    Pairs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rope {
    /// Made by a `RopeTable`; twice as wide as there are rotated pairs.
    pub table: Buf,
    pub style: RopeStyle,
}

#[derive(Clone, Debug)]
pub struct QkRopeWrite {
    /// Rows of all Q heads, then all K heads, then all V heads.
    pub qkv: Buf,
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub rope: Option<Rope>,
    pub heads: usize,
    pub kv: KvId,
}

impl QkRopeWrite {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.qkv);
        if let Some(rope) = self.rope {
            f(rope.table);
        }
    }

    pub(super) fn result(&self) -> Buf {
        self.qkv
    }

    pub(crate) fn layer(&self, program: &Program) -> KvLayer {
        program.state().kv[self.kv.0 as usize]
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let KvLayer { kv_heads, head_dim } = self.layer(program);
        check_width(program, self.qkv, (self.heads + 2 * kv_heads) * head_dim)?;
        for norm in self.q_norm.iter().chain(&self.k_norm) {
            norm.check(program, head_dim)?;
        }
        match self.rope {
            Some(rope) if program.buffer(rope.table).width > head_dim => {
                Err("more elements are rotated than a head has".into())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn for_each_matrix(&self, _program: &Program, _f: &mut dyn FnMut(MatId, usize)) {}
}
