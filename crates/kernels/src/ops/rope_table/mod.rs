//! The cosines and sines of every row's rotary angles, once per step for all layers that share a base.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod reference;

use super::check_width;
use crate::program::{Buf, MatId, Program, VecId};

#[derive(Clone, Debug)]
pub struct RopeTable {
    /// One frequency per rotated pair; scaling is already in it.
    pub inv_freq: VecId,
    /// Multiplies cosines and sines (1 unless a scaling asks for more).
    pub magnitude: f32,
    /// All cosines, then all sines.
    pub out: Buf,
}

impl RopeTable {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.out);
    }

    pub(super) fn result(&self) -> Buf {
        self.out
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        check_width(program, self.out, 2 * program.vector(self.inv_freq).len())
    }

    pub(super) fn for_each_matrix(&self, _program: &Program, _f: &mut dyn FnMut(MatId, usize)) {}
}
