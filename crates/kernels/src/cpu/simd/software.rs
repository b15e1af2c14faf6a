//! What single instructions of some processors do, for the others.

use exotherm_tensor::formats::bf16_to_f32;

use super::{Isa, WIDTH};
use crate::rounding::bf16;

/// See [`Isa::bf16_pairs`].
#[inline(always)]
pub(super) fn bf16_pairs(from: &[f32; WIDTH]) -> [u32; WIDTH / 2] {
    let mut words = [0; WIDTH / 2];
    for (word, pair) in words.iter_mut().zip(from.as_chunks::<2>().0) {
        *word = u32::from(bf16(pair[0])) | u32::from(bf16(pair[1])) << 16;
    }
    words
}

/// See [`Isa::dot_bf16_pairs`].
#[inline(always)]
pub(super) fn dot_bf16_pairs<I: Isa>(isa: I, a: I::V, b: I::V, sums: I::V) -> I::V {
    let (mut left, mut right, mut out) = ([0.0; WIDTH], [0.0; WIDTH], [0.0; WIDTH]);
    isa.store(a, &mut left);
    isa.store(b, &mut right);
    isa.store(sums, &mut out);
    for lane in 0..WIDTH {
        let (a, b) = (left[lane].to_bits(), right[lane].to_bits());
        for half in [16, 0] {
            let (a, b) = (bf16_to_f32((a >> half) as u16), bf16_to_f32((b >> half) as u16));
            out[lane] = flushed(flushed(a).mul_add(flushed(b), flushed(out[lane])));
        }
    }
    isa.load(&out)
}

/// What is less than all normal numbers is taken and given as zero.
#[inline(always)]
fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}
