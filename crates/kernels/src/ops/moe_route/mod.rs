//! Norm + router + softmax + top-k: which experts a row visits and with what weights.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{Norm, check_matrix, check_width};
use crate::program::{Buf, MatId, Program};

#[derive(Clone, Debug)]
pub struct MoeRoute {
    pub x: Buf,
    pub norm: Norm,
    pub router: MatId,
    pub top_k: usize,
    /// Make the chosen experts' weights sum to 1.
    pub renormalize: bool,
    /// The normed row, for the experts.
    pub normed: Buf,
    /// `top_k` expert numbers, best first, as floats (exact: there are far fewer than 2^24), then their weights.
    /// Among equal scores the lower number comes first.
    pub routes: Buf,
}

impl MoeRoute {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.x);
        f(self.normed);
        f(self.routes);
    }

    pub(super) fn result(&self) -> Buf {
        self.routes
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let width = program.buffer(self.x).width;
        let experts = program.matrix(self.router).n_out;
        check_matrix(program, self.router, experts, width)?;
        check_width(program, self.normed, width)?;
        check_width(program, self.routes, 2 * self.top_k)?;
        if self.top_k == 0 || self.top_k > experts {
            return Err(format!("{} of {experts} experts cannot be chosen", self.top_k));
        }
        self.norm.check(program, width)
    }

    pub(super) fn for_each_matrix(&self, program: &Program, f: &mut dyn FnMut(MatId, usize)) {
        f(self.router, program.matrix(self.router).n_out);
    }
}
