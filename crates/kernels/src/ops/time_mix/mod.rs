//! RWKV-7's time mixing in one op: k-normalisation, decay, state update, group norm, bonus, gate.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{Norm, NormKind, check_vector, check_width};
use crate::program::{Buf, MatId, Program, RecId, VecId};

/// exp(DECAY · sigmoid(w)) is the share of the state that is kept: −e^(−1/2).
pub(crate) const DECAY: f32 = -0.606_530_66;

#[derive(Clone, Debug)]
pub struct TimeMix {
    /// Receptance, key and value, one after another.
    pub rkv: Buf,
    /// Decay (before its sigmoid), in-context rate, gate and, but for the first layer, value mix, one after another.
    pub wagv: Buf,
    /// The first layer's values, which every later layer mixes with its own.
    pub v_first: Buf,
    /// On the first layer `v_first` is written, not read.
    pub is_first_layer: bool,
    pub k_k: VecId,
    pub k_a: VecId,
    pub r_k: VecId,
    /// Group norm over each head.
    pub norm: Norm,
    pub heads: usize,
    /// Per head a matrix `[value][key]`.
    pub state: RecId,
    pub out: Buf,
}

impl TimeMix {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.rkv);
        f(self.wagv);
        f(self.v_first);
        f(self.out);
    }

    pub(super) fn result(&self) -> Buf {
        self.out
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let width = program.buffer(self.out).width;
        if !width.is_multiple_of(self.heads) {
            return Err(format!("{} heads do not share a width of {width} evenly", self.heads));
        }
        let head_size = width / self.heads;
        check_width(program, self.rkv, 3 * width)?;
        check_width(program, self.wagv, if self.is_first_layer { 3 } else { 4 } * width)?;
        check_width(program, self.v_first, width)?;
        for (id, what) in [(self.k_k, "k_k"), (self.k_a, "k_a"), (self.r_k, "r_k")] {
            check_vector(program, id, width, what)?;
        }
        if self.norm.kind != NormKind::Layer {
            return Err("time mixing ends in a group norm".into());
        }
        if program.state().recurrent[self.state.0 as usize] != self.heads * head_size * head_size {
            return Err("the state does not hold a matrix per head".into());
        }
        self.norm.check(program, width)
    }

    pub(super) fn for_each_matrix(&self, _program: &Program, _f: &mut dyn FnMut(MatId, usize)) {}
}
