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
        // The product of two BF16 is exact in f32 but for its range, so the sum is what is rounded.
        out[lane] += high(a) * high(b);
        out[lane] += low(a) * low(b);
    }
    isa.load(&out)
}

#[inline(always)]
fn low(pair: u32) -> f32 {
    bf16_to_f32(pair as u16)
}

#[inline(always)]
fn high(pair: u32) -> f32 {
    bf16_to_f32((pair >> 16) as u16)
}
