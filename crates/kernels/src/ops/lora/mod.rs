//! RWKV: the low-rank pairs of a layer (decay, in-context rate, value mix, gate), the middle kept on chip.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{Activation, check_matrix, check_vector, check_width};
use crate::program::{Buf, MatId, Program, VecId};

/// out(bias + up · middle(down · x))
#[derive(Clone, Debug)]
pub struct LoraPair {
    /// Where in the row the input begins.
    pub x_at: usize,
    pub down: MatId,
    pub middle: Activation,
    pub up: MatId,
    pub bias: Option<VecId>,
    pub out: Activation,
}

#[derive(Clone, Debug)]
pub struct Lora {
    pub x: Buf,
    pub pairs: Vec<LoraPair>,
    /// The pairs' outputs, one after another.
    pub out: Buf,
}

impl Lora {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.x);
        f(self.out);
    }

    pub(super) fn result(&self) -> Buf {
        self.out
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let width = program.buffer(self.x).width;
        let mut outputs = 0;
        for pair in &self.pairs {
            let (down, up) = (program.matrix(pair.down), program.matrix(pair.up));
            check_matrix(program, pair.up, up.n_out, down.n_out)?;
            if pair.x_at + down.n_in > width {
                return Err(format!("the input of {} lies past the row", down.name));
            }
            if pair.middle.is_gated() || pair.out.is_gated() {
                return Err("a gated activation has no place in a low-rank pair".into());
            }
            if let Some(bias) = pair.bias {
                check_vector(program, bias, up.n_out, "bias")?;
            }
            outputs += up.n_out;
        }
        check_width(program, self.out, outputs)
    }

    pub(super) fn for_each_matrix(&self, program: &Program, f: &mut dyn FnMut(MatId, usize)) {
        for pair in &self.pairs {
            f(pair.down, program.matrix(pair.down).n_out);
            f(pair.up, program.matrix(pair.up).n_out);
        }
    }
}
