//! Token embedding: a row of the table, scaled, plus a learned position, then an optional norm.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
pub(crate) mod reference;

use super::{Norm, check_width};
use crate::program::{Buf, MatId, Program};

#[derive(Clone, Debug)]
pub struct Embed {
    pub table: MatId,
    pub scale: f32,
    /// Learned positions (GPT-2), a row per position.
    pub positions: Option<MatId>,
    /// RWKV's `ln0`.
    pub norm: Option<Norm>,
    pub out: Buf,
}

impl Embed {
    pub(super) fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
        f(self.out);
    }

    pub(super) fn result(&self) -> Buf {
        self.out
    }

    pub(super) fn check(&self, program: &Program) -> Result<(), String> {
        let n = program.matrix(self.table).n_in;
        check_width(program, self.out, n)?;
        if program.matrix(self.table).n_out < program.vocab() {
            return Err("the embedding has fewer rows than the vocabulary".into());
        }
        if let Some(positions) = self.positions {
            let table = program.matrix(positions);
            if table.n_in != n || Some(table.n_out) != program.max_positions() {
                return Err("the position table does not fit the embedding or the position limit".into());
            }
        }
        self.norm.map_or(Ok(()), |norm| norm.check(program, n))
    }

    pub(super) fn for_each_matrix(&self, _program: &Program, f: &mut dyn FnMut(MatId, usize)) {
        f(self.table, 1);
        if let Some(positions) = self.positions {
            f(positions, 1);
        }
    }
}
