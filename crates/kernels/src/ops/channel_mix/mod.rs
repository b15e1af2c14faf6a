//! RWKV: layer norm + token shift + key projection + squared ReLU (the value projection is a `LinearResidual`).

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{Norm, check_matrix, check_vector};
use crate::program::{Buf, MatId, Program, RecId, VecId};

#[derive(Clone, Debug)]
pub struct ChannelMix {
    pub x: Buf,
    pub norm: Norm,
    pub mix: VecId,
    pub state: RecId,
    pub weight: MatId,
    pub out: Buf,
}

impl ChannelMix {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.x);
        f(self.out);
    }

    pub(super) fn result(&self) -> Buf {
        self.out
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let width = program.buffer(self.x).width;
        check_vector(program, self.mix, width, "mix")?;
        check_matrix(program, self.weight, program.buffer(self.out).width, width)?;
        if program.state().recurrent[self.state.0 as usize] != width {
            return Err("the shift state is not as wide as the row".into());
        }
        self.norm.check(program, width)
    }

    pub(super) fn for_each_matrix(&self, program: &Program, f: &mut dyn FnMut(MatId, usize)) {
        f(self.weight, program.matrix(self.weight).n_out);
    }
}
