//! Norm + one packed projection + bias + activation: Q, K, V in one matrix, or gate and up, or GPT-2's up.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{Activation, Norm, check_matrix, check_vector, check_width};
use crate::program::{Buf, MatId, Program, VecId};

#[derive(Clone, Debug)]
pub struct NormLinear {
    pub x: Buf,
    pub norm: Option<Norm>,
    pub weight: MatId,
    pub bias: Option<VecId>,
    pub activation: Activation,
    pub out: Buf,
}

impl NormLinear {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.x);
        f(self.out);
    }

    pub(super) fn result(&self) -> Buf {
        self.out
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let m = program.matrix(self.weight);
        let width = program.buffer(self.x).width;
        check_matrix(program, self.weight, m.n_out, width)?;
        check_width(program, self.out, self.activation.width(m.n_out))?;
        if self.activation.is_gated() && !m.n_out.is_multiple_of(2) {
            return Err("a gated activation needs an even number of outputs".into());
        }
        if let Some(bias) = self.bias {
            check_vector(program, bias, m.n_out, "bias")?;
        }
        self.norm.map_or(Ok(()), |norm| norm.check(program, width))
    }

    pub(super) fn for_each_matrix(&self, program: &Program, f: &mut dyn FnMut(MatId, usize)) {
        f(self.weight, program.matrix(self.weight).n_out);
    }
}
