//! Several projections of different slices of one row in one op (RWKV's receptance, key and value).

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::check_width;
use crate::program::{Buf, MatId, Program};

#[derive(Clone, Debug)]
pub struct GroupedLinear {
    pub x: Buf,
    /// Where in the row each matrix's input begins, and the matrix; outputs lie one after another.
    pub groups: Vec<(usize, MatId)>,
    pub out: Buf,
}

impl GroupedLinear {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.x);
        f(self.out);
    }

    pub(super) fn result(&self) -> Buf {
        self.out
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let width = program.buffer(self.x).width;
        for &(at, weight) in &self.groups {
            if at + program.matrix(weight).n_in > width {
                return Err(format!("the input of {} lies past the row", program.matrix(weight).name));
            }
        }
        check_width(program, self.out, self.groups.iter().map(|&(_, w)| program.matrix(w).n_out).sum())
    }

    pub(super) fn for_each_matrix(&self, program: &Program, f: &mut dyn FnMut(MatId, usize)) {
        self.groups.iter().for_each(|&(_, w)| f(w, program.matrix(w).n_out));
    }
}
