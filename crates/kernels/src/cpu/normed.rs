//! The normed input of an op: all rows at once into shared memory before a barrier, or, where there is one row only,
//! by every lane for itself, which is cheaper than the barrier and gives the same bits.

use super::context::{Ctx, Lane};
use super::pack::Packer;
use super::product::Rows;
use super::vector::normalize;
use crate::ops::Norm;
use crate::program::Buf;

#[derive(Clone, Copy)]
pub(crate) struct NormedInput {
    x: Buf,
    norm: Option<Norm>,
    /// Only the rows that want logits.
    logits_only: bool,
}

impl NormedInput {
    pub fn new(x: Buf, norm: Option<Norm>, packer: &mut Packer) -> NormedInput {
        NormedInput::prepared(NormedInput { x, norm, logits_only: false }, packer)
    }

    pub fn of_logit_rows(x: Buf, norm: Norm, packer: &mut Packer) -> NormedInput {
        NormedInput::prepared(NormedInput { x, norm: Some(norm), logits_only: true }, packer)
    }

    fn prepared(input: NormedInput, packer: &mut Packer) -> NormedInput {
        let (width, rows) = (packer.program.buffer(input.x).width, packer.max_rows());
        packer.need(|s| &mut s.normed, &[width]);
        packer.need(|s| &mut s.shared_normed, &[width, rows]);
        input
    }

    fn len(&self, cx: &Ctx) -> usize {
        if self.logits_only { cx.batch.logit_rows().len() } else { cx.batch.rows() }
    }

    fn row<'a>(&self, cx: &Ctx<'a>, row: usize) -> &'a [f32] {
        let row = if self.logits_only { cx.batch.logit_rows()[row] as usize } else { row };
        // SAFETY: an op does not write the buffer that it norms in the stages that read it.
        unsafe { cx.rows(self.x) }.row(row)
    }

    /// Stages that `normalize` takes before `rows` may be asked: one or none.
    pub fn stages(&self, cx: &Ctx) -> usize {
        usize::from(self.norm.is_some() && self.len(cx) > 1)
    }

    pub fn normalize(&self, cx: &Ctx, lane: &Lane) {
        let Some(norm) = &self.norm else { return };
        let width = cx.program.buffer(self.x).width;
        for row in lane.items(self.len(cx)) {
            // SAFETY: each row is normed by one lane.
            let out = unsafe { cx.memory.normed.slice_mut(row * width..(row + 1) * width) };
            normalize(cx.level, cx.program, norm, self.row(cx, row), out);
        }
    }

    /// The rows; `scratch` is the lane's for one normed row.
    pub fn rows<'a>(&self, cx: &Ctx<'a>, scratch: &'a mut [f32]) -> Rows<'a> {
        let (n, width) = (self.len(cx), cx.program.buffer(self.x).width);
        let Some(norm) = &self.norm else {
            // SAFETY: an op does not write its input.
            return unsafe { cx.rows(self.x) };
        };
        if n == 1 {
            let out = &mut scratch[..width];
            normalize(cx.level, cx.program, norm, self.row(cx, 0), out);
            return Rows::one(out);
        }
        // SAFETY: written in an earlier stage.
        Rows::new(unsafe { cx.memory.normed.slice(0..n * width) }, width, width, n)
    }
}
