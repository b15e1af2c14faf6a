//! Arrays, for processors without a level of their own. The compiler makes vectors of them as far as it can.

use exotherm_tensor::formats::f16_to_f32;

use super::bytes::{BYTES, ByteIsa};
use super::{Isa, WIDTH};

#[derive(Clone, Copy)]
pub(crate) struct Scalar;

/// A fused product and sum is a library call where the target has no instruction for it.
const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

impl Isa for Scalar {
    type V = [f32; WIDTH];
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; WIDTH]
    }

    #[inline(always)]
    fn load(self, from: &[f32; WIDTH]) -> Self::V {
        *from
    }

    #[inline(always)]
    fn store(self, value: Self::V, to: &mut [f32; WIDTH]) {
        *to = value;
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| if FUSED { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] })
    }

    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    fn halves_to_floats(self, bits: &[u16; WIDTH]) -> Self::V {
        bits.map(f16_to_f32)
    }

    #[inline(always)]
    fn bf16_pairs_to_floats(self, pairs: &[u32; WIDTH]) -> [Self::V; 2] {
        [pairs.map(|pair| f32::from_bits(pair << 16)), pairs.map(|pair| f32::from_bits(pair & 0xffff_0000))]
    }

    #[inline(always)]
    fn i8s_to_floats(self, bytes: &[u8; WIDTH]) -> Self::V {
        bytes.map(|b| f32::from(b as i8))
    }

    #[inline(always)]
    fn rounded(self, v: Self::V) -> ([u32; 4], i32) {
        // Adding it leaves the nearest integer in the lowest bits.
        const NO_FRACTION: f32 = 12_582_912.0; // 1.5 · 2^23
        let codes = v.map(|v| (v + NO_FRACTION).to_bits().wrapping_sub(NO_FRACTION.to_bits()) as i8);
        let word = |i: usize| u32::from_le_bytes(std::array::from_fn(|b| codes[4 * i + b] as u8));
        (std::array::from_fn(word), codes.iter().map(|&code| i32::from(code)).sum())
    }
}

impl ByteIsa for Scalar {
    type Floats = Scalar;
    type Bytes = [u8; BYTES];
    type Sums = [i32; WIDTH];

    #[inline(always)]
    fn floats(self) -> Scalar {
        self
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; BYTES]) -> Self::Bytes {
        *from
    }

    #[inline(always)]
    fn field(self, bytes: Self::Bytes, right: i32, mask: u8) -> Self::Bytes {
        bytes.map(|b| (if right < 0 { b << -right } else { b >> right }) & mask)
    }

    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn splat_sum(self, value: i32) -> Self::Sums {
        [value; WIDTH]
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: Self::Sums, codes: Self::Bytes, x: u32) -> Self::Sums {
        let x = x.to_le_bytes().map(|b| i32::from(b as i8));
        let product = |lane: usize, i: usize| i32::from(codes[4 * lane + i]) * x[i];
        std::array::from_fn(|lane| sums[lane] + (0..4).map(|i| product(lane, i)).sum::<i32>())
    }

    #[inline(always)]
    fn sums_to_floats(self, sums: Self::Sums) -> [f32; WIDTH] {
        sums.map(|sum| sum as f32)
    }

    #[inline(always)]
    fn fused(self, a: [f32; WIDTH], b: [f32; WIDTH], c: [f32; WIDTH]) -> [f32; WIDTH] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
}
