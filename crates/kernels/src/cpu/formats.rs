//! Blocks of weights as vectors, value for value what `exotherm_tensor::formats::decode` makes of them.

use exotherm_tensor::formats::{q2_k, q3_k, q4_k, q5_0, q5_1, q5_k};

use super::simd::{Isa, WIDTH};

/// A block of `BYTES` bytes that holds `LEN` elements, a multiple of [`WIDTH`]. (The float types have no blocks of
/// their own; theirs are one vector, and their packed rows are padded with zeros to whole ones.)
pub(super) trait Format<const BYTES: usize, const LEN: usize> {
    /// Calls `each` with the number and the values of every vector of the block, in order.
    fn vectors<I: Isa>(isa: I, block: &[u8; BYTES], each: impl FnMut(usize, I::V));
}

#[inline(always)]
fn u16s(bytes: &[u8; 32]) -> [u16; WIDTH] {
    std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]))
}

#[inline(always)]
fn half_at<I: Isa>(isa: I, block: &[u8], at: usize) -> f32 {
    isa.from_half(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[inline(always)]
fn splat_half_at<I: Isa>(isa: I, block: &[u8], at: usize) -> I::V {
    isa.splat_half(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Sixteen bytes from `at` on.
#[inline(always)]
fn bytes_at(block: &[u8], at: usize) -> &[u8; WIDTH] {
    block[at..].first_chunk().expect("a block's fields lie inside it")
}

pub(super) struct F32;

impl Format<64, 16> for F32 {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 64], mut each: impl FnMut(usize, I::V)) {
        let values: [f32; WIDTH] =
            std::array::from_fn(|i| f32::from_le_bytes(std::array::from_fn(|b| block[4 * i + b])));
        each(0, isa.load(&values));
    }
}

pub(super) struct F16;

impl Format<32, 16> for F16 {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 32], mut each: impl FnMut(usize, I::V)) {
        each(0, isa.from_halves(&u16s(block)));
    }
}

pub(super) struct BF16;

impl Format<32, 16> for BF16 {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 32], mut each: impl FnMut(usize, I::V)) {
        each(0, isa.from_bf16(&u16s(block)));
    }
}

pub(super) struct Q8_0;

impl Format<34, 32> for Q8_0 {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 34], mut each: impl FnMut(usize, I::V)) {
        let d = splat_half_at(isa, block, 0);
        each(0, isa.mul(d, isa.from_i8(bytes_at(block, 2))));
        each(1, isa.mul(d, isa.from_i8(bytes_at(block, 18))));
    }
}

pub(super) struct Q4_0;

impl Format<18, 32> for Q4_0 {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 18], mut each: impl FnMut(usize, I::V)) {
        let (d, middle) = (splat_half_at(isa, block, 0), isa.splat(-8.0));
        let (low, high) = isa.nibbles(bytes_at(block, 2), |q| isa.mul(d, isa.add(q, middle)));
        each(0, low);
        each(1, high);
    }
}

pub(super) struct Q4_1;

impl Format<20, 32> for Q4_1 {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 20], mut each: impl FnMut(usize, I::V)) {
        let (d, m) = (splat_half_at(isa, block, 0), splat_half_at(isa, block, 2));
        let (low, high) = isa.nibbles(bytes_at(block, 4), |q| isa.add(isa.mul(d, q), m));
        each(0, low);
        each(1, high);
    }
}

pub(super) struct Q6K;

impl Format<210, 256> for Q6K {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 210], mut each: impl FnMut(usize, I::V)) {
        let d = half_at(isa, block, 208);
        for group in 0..16 {
            let (half, in_half) = (group / 8, group % 8);
            let lower = bytes_at(block, half * 64 + in_half % 4 * 16);
            let upper = bytes_at(block, 128 + half * 32 + in_half % 2 * 16);
            let (lower_shift, upper_shift) = (in_half / 4 * 4, in_half / 2 * 2);
            let codes = std::array::from_fn(|i| {
                let code = (lower[i] >> lower_shift) & 15 | ((upper[i] >> upper_shift) & 3) << 4;
                code.wrapping_sub(32)
            });
            let scale = isa.splat(d * f32::from(block[192 + group] as i8));
            each(group, isa.mul(scale, isa.from_i8(&codes)));
        }
    }
}

/// Formats decoded by their reference, which the compiler makes vector code of.
macro_rules! by_reference {
    ($($name:ident: $bytes:literal, $len:literal, $module:ident;)+) => {$(
        pub(super) struct $name;

        impl Format<$bytes, $len> for $name {
            #[inline(always)]
            fn vectors<I: Isa>(isa: I, block: &[u8; $bytes], mut each: impl FnMut(usize, I::V)) {
                let mut values = [0.0; $len];
                $module::decode_block(block, &mut values);
                for (i, vector) in values.as_chunks().0.iter().enumerate() {
                    each(i, isa.load(vector));
                }
            }
        }
    )+};
}

by_reference! {
    Q5_0: 22, 32, q5_0;
    Q5_1: 24, 32, q5_1;
    Q2K: 84, 256, q2_k;
    Q3K: 110, 256, q3_k;
    Q4K: 144, 256, q4_k;
    Q5K: 176, 256, q5_k;
}
