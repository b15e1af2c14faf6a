//! Projection + bias + optional norm of the result (Gemma's sandwich) + residual.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{Norm, check_matrix, check_vector};
use crate::program::{Buf, MatId, Program, VecId};

#[derive(Clone, Debug)]
pub struct LinearResidual {
    pub x: Buf,
    pub weight: MatId,
    pub bias: Option<VecId>,
    pub post_norm: Option<Norm>,
    /// Read and added to.
    pub residual: Buf,
}

impl LinearResidual {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.x);
        f(self.residual);
    }

    pub(super) fn result(&self) -> Buf {
        self.residual
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let n_out = program.buffer(self.residual).width;
        check_matrix(program, self.weight, n_out, program.buffer(self.x).width)?;
        if let Some(bias) = self.bias {
            check_vector(program, bias, n_out, "bias")?;
        }
        self.post_norm.map_or(Ok(()), |norm| norm.check(program, n_out))
    }

    pub(super) fn for_each_matrix(&self, program: &Program, f: &mut dyn FnMut(MatId, usize)) {
        f(self.weight, program.matrix(self.weight).n_out);
    }
}
