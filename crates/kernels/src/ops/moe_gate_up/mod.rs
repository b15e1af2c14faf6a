//! Gate and up projections of the chosen experts with their activation.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{Activation, check_matrix, check_width};
use crate::program::{Buf, MatId, Program};

#[derive(Clone, Debug)]
pub struct MoeGateUp {
    pub normed: Buf,
    /// Made by a `MoeRoute`.
    pub routes: Buf,
    pub top_k: usize,
    pub experts: usize,
    /// All experts' gate rows, expert after expert.
    pub gate: MatId,
    pub up: MatId,
    /// A gated one.
    pub activation: Activation,
    /// The chosen experts' hidden rows, in the order of `routes`.
    pub out: Buf,
}

impl MoeGateUp {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.normed);
        f(self.routes);
        f(self.out);
    }

    pub(super) fn result(&self) -> Buf {
        self.out
    }

    /// Hidden width of one expert.
    pub(crate) fn hidden(&self, program: &Program) -> usize {
        program.matrix(self.gate).n_out / self.experts
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let (width, hidden) = (program.buffer(self.normed).width, self.hidden(program));
        check_matrix(program, self.gate, self.experts * hidden, width)?;
        check_matrix(program, self.up, self.experts * hidden, width)?;
        check_width(program, self.routes, 2 * self.top_k)?;
        check_width(program, self.out, self.top_k * hidden)?;
        match self.activation.is_gated() {
            true => Ok(()),
            false => Err("the experts' activation must be a gated one".into()),
        }
    }

    pub(super) fn for_each_matrix(&self, program: &Program, f: &mut dyn FnMut(MatId, usize)) {
        f(self.gate, self.top_k * self.hidden(program));
        f(self.up, self.top_k * self.hidden(program));
    }
}
