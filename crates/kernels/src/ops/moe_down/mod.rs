//! Down projections of the chosen experts, summed by weight in the order of `routes`, + residual.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{check_matrix, check_width};
use crate::program::{Buf, MatId, Program};

#[derive(Clone, Debug)]
pub struct MoeDown {
    /// Made by a `MoeGateUp`.
    pub hidden: Buf,
    pub routes: Buf,
    pub top_k: usize,
    pub experts: usize,
    /// All experts' down rows, expert after expert.
    pub down: MatId,
    pub residual: Buf,
}

impl MoeDown {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.hidden);
        f(self.routes);
        f(self.residual);
    }

    pub(super) fn result(&self) -> Buf {
        self.residual
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let (width, hidden) = (program.buffer(self.residual).width, program.buffer(self.hidden).width);
        check_width(program, self.routes, 2 * self.top_k)?;
        if !hidden.is_multiple_of(self.top_k) {
            return Err("the hidden rows do not divide among the chosen experts".into());
        }
        check_matrix(program, self.down, self.experts * width, hidden / self.top_k)
    }

    pub(super) fn for_each_matrix(&self, program: &Program, f: &mut dyn FnMut(MatId, usize)) {
        f(self.down, self.top_k * program.buffer(self.residual).width);
    }
}
