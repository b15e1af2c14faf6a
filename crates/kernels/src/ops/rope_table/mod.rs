//! The cosines and sines of every row's rotary angles, once per step for all layers that share a base.

pub(crate) mod cases;
pub(crate) mod cpu;
pub(crate) mod gpu;
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

/// All cosines and sines of a position. The angle is rounded to f32 before its cosine is taken, as the families' reference
/// implementations do.
pub(crate) fn angles(inv_freq: &[f32], magnitude: f32, position: u32) -> impl Iterator<Item = f32> {
    let angle = move |f: &f32| f64::from(position as f32 * f);
    let magnitude = f64::from(magnitude);
    let cosines = inv_freq.iter().map(move |f| (angle(f).cos() * magnitude) as f32);
    cosines.chain(inv_freq.iter().map(move |f| (angle(f).sin() * magnitude) as f32))
}
