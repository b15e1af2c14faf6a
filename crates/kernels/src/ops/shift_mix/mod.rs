//! RWKV: layer norm + all token shifts of a layer. The shift state keeps the last normed row of a sequence.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{Norm, check_vector, check_width};
use crate::program::{Buf, MatId, Program, RecId, VecId};

#[derive(Clone, Debug)]
pub struct ShiftMix {
    pub x: Buf,
    pub norm: Norm,
    /// `mixes` vectors of coefficients, one after another: output m is normed + (previous − normed) · mix_m.
    pub mix: VecId,
    pub mixes: usize,
    pub state: RecId,
    /// The mixes' rows, one after another.
    pub out: Buf,
}

impl ShiftMix {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.x);
        f(self.out);
    }

    pub(super) fn result(&self) -> Buf {
        self.out
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let width = program.buffer(self.x).width;
        check_vector(program, self.mix, self.mixes * width, "mix")?;
        check_width(program, self.out, self.mixes * width)?;
        if program.state().recurrent[self.state.0 as usize] != width {
            return Err("the shift state is not as wide as the row".into());
        }
        self.norm.check(program, width)
    }

    pub(super) fn for_each_matrix(&self, _program: &Program, _f: &mut dyn FnMut(MatId, usize)) {}
}
