//! Final norm + output projection, for the rows that want logits only.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{Norm, check_matrix};
use crate::program::{Buf, MatId, Program};

#[derive(Clone, Debug)]
pub struct Head {
    pub x: Buf,
    pub norm: Norm,
    pub weight: MatId,
    /// Logits become cap · tanh(logit / cap).
    pub soft_cap: Option<f32>,
    pub logits: Buf,
}

impl Head {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.x);
        f(self.logits);
    }

    pub(super) fn result(&self) -> Buf {
        self.logits
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let width = program.buffer(self.x).width;
        check_matrix(program, self.weight, program.buffer(self.logits).width, width)?;
        self.norm.check(program, width)
    }

    pub(super) fn for_each_matrix(&self, program: &Program, f: &mut dyn FnMut(MatId, usize)) {
        f(self.weight, program.matrix(self.weight).n_out);
    }
}
