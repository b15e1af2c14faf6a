//! Blocks of weights as vectors, value for value what `exotherm_tensor::formats::decode` makes of them.

use exotherm_tensor::formats::common::unpack_scales_and_mins;
use exotherm_tensor::formats::{q3_k, q5_0, q5_1};

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
    isa.half_to_float(u16::from_le_bytes([block[at], block[at + 1]]))
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
        each(0, isa.halves_to_floats(&u16s(block)));
    }
}

pub(super) struct BF16;

impl Format<32, 16> for BF16 {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 32], mut each: impl FnMut(usize, I::V)) {
        each(0, isa.bf16s_to_floats(&u16s(block)));
    }
}

pub(super) struct Q8_0;

impl Format<34, 32> for Q8_0 {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 34], mut each: impl FnMut(usize, I::V)) {
        let d = splat_half_at(isa, block, 0);
        each(0, isa.mul(d, isa.i8s_to_floats(bytes_at(block, 2))));
        each(1, isa.mul(d, isa.i8s_to_floats(bytes_at(block, 18))));
    }
}

pub(super) struct Q4_0;

impl Format<18, 32> for Q4_0 {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 18], mut each: impl FnMut(usize, I::V)) {
        let (d, middle) = (splat_half_at(isa, block, 0), isa.splat(-8.0));
        let value = |q| isa.mul(d, isa.add(q, middle));
        let (low, high) = isa.nibbles(bytes_at(block, 2), value, value);
        each(0, low);
        each(1, high);
    }
}

pub(super) struct Q4_1;

impl Format<20, 32> for Q4_1 {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 20], mut each: impl FnMut(usize, I::V)) {
        let (d, m) = (splat_half_at(isa, block, 0), splat_half_at(isa, block, 2));
        let value = |q| isa.add(isa.mul(d, q), m);
        let (low, high) = isa.nibbles(bytes_at(block, 4), value, value);
        each(0, low);
        each(1, high);
    }
}

/// The bits `mask` of sixteen bytes after a shift to the right, moved to the left by `up`.
#[inline(always)]
fn fields(bytes: &[u8; WIDTH], shift: usize, mask: u8, up: usize) -> [u64; 2] {
    let mask = u64::from_le_bytes([mask; 8]);
    let (low, high) = bytes.split_at(8);
    let word = |half: &[u8]| {
        let bytes = half.first_chunk().expect("half of sixteen bytes");
        ((u64::from_le_bytes(*bytes) >> shift) & mask) << up
    };
    [word(low), word(high)]
}

#[inline(always)]
fn joined(a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
    [a[0] | b[0], a[1] | b[1]]
}

/// Codes of less than 128 as floats.
#[inline(always)]
fn code_values<I: Isa>(isa: I, codes: [u64; 2]) -> I::V {
    let mut bytes = [0; WIDTH];
    bytes[..8].copy_from_slice(&codes[0].to_le_bytes());
    bytes[8..].copy_from_slice(&codes[1].to_le_bytes());
    isa.i8s_to_floats(&bytes)
}

pub(super) struct Q2K;

impl Format<84, 256> for Q2K {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 84], mut each: impl FnMut(usize, I::V)) {
        let (d, d_min) = (half_at(isa, block, 80), half_at(isa, block, 82));
        for group in 0..16 {
            let codes =
                fields(bytes_at(block, 16 + group / 8 * 32 + group % 2 * 16), group / 2 % 4 * 2, 3, 0);
            let scale = isa.splat(d * f32::from(block[group] & 15));
            let min = isa.splat(-(d_min * f32::from(block[group] >> 4)));
            each(group, isa.add(isa.mul(scale, code_values(isa, codes)), min));
        }
    }
}

pub(super) struct Q3K;

impl Format<110, 256> for Q3K {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 110], mut each: impl FnMut(usize, I::V)) {
        let d = half_at(isa, block, 108);
        let (scales, middle) = (q3_k::unpack_scales(block), isa.splat(-4.0));
        for (group, &scale) in scales.iter().enumerate() {
            let lower =
                fields(bytes_at(block, 32 + group / 8 * 32 + group % 2 * 16), group / 2 % 4 * 2, 3, 0);
            let third = fields(bytes_at(block, group % 2 * 16), group / 2, 1, 2);
            let code = isa.add(code_values(isa, joined(lower, third)), middle);
            each(group, isa.mul(isa.splat(d * f32::from(scale)), code));
        }
    }
}

/// The scale and the negated minimum of the groups of Q4_K and Q5_K.
#[inline(always)]
fn scales_and_mins<I: Isa>(isa: I, block: &[u8]) -> [(f32, f32); 8] {
    let (d, d_min) = (half_at(isa, block, 0), half_at(isa, block, 2));
    let (scales, mins) = unpack_scales_and_mins(&block[4..16]);
    let mut groups = [(0.0, 0.0); 8];
    for g in 0..8 {
        groups[g] = (d * f32::from(scales[g]), -(d_min * f32::from(mins[g])));
    }
    groups
}

pub(super) struct Q4K;

impl Format<144, 256> for Q4K {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 144], mut each: impl FnMut(usize, I::V)) {
        let groups = scales_and_mins(isa, block);
        for pair in 0..4 {
            let [a, b] = [groups[2 * pair], groups[2 * pair + 1]];
            let (scale_a, min_a) = (isa.splat(a.0), isa.splat(a.1));
            let (scale_b, min_b) = (isa.splat(b.0), isa.splat(b.1));
            let value_a = |q| isa.add(isa.mul(scale_a, q), min_a);
            let value_b = |q| isa.add(isa.mul(scale_b, q), min_b);
            let first = isa.nibbles(bytes_at(block, 16 + 32 * pair), value_a, value_b);
            let second = isa.nibbles(bytes_at(block, 32 + 32 * pair), value_a, value_b);
            each(4 * pair, first.0);
            each(4 * pair + 1, second.0);
            each(4 * pair + 2, first.1);
            each(4 * pair + 3, second.1);
        }
    }
}

pub(super) struct Q5K;

impl Format<176, 256> for Q5K {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 176], mut each: impl FnMut(usize, I::V)) {
        let groups = scales_and_mins(isa, block);
        for vector in 0..16 {
            let (group, half) = (vector / 2, vector % 2 * 16);
            let lower = fields(bytes_at(block, 48 + group / 2 * 32 + half), group % 2 * 4, 15, 0);
            let fifth = fields(bytes_at(block, 16 + half), group, 1, 4);
            let (scale, min) = (isa.splat(groups[group].0), isa.splat(groups[group].1));
            each(vector, isa.add(isa.mul(scale, code_values(isa, joined(lower, fifth))), min));
        }
    }
}

pub(super) struct Q6K;

impl Format<210, 256> for Q6K {
    #[inline(always)]
    fn vectors<I: Isa>(isa: I, block: &[u8; 210], mut each: impl FnMut(usize, I::V)) {
        let (d, middle) = (half_at(isa, block, 208), isa.splat(-32.0));
        for group in 0..16 {
            let (half, in_half) = (group / 8, group % 8);
            let lower = fields(bytes_at(block, half * 64 + in_half % 4 * 16), in_half / 4 * 4, 15, 0);
            let upper = fields(bytes_at(block, 128 + half * 32 + in_half % 2 * 16), in_half / 2 * 2, 3, 4);
            let code = isa.add(code_values(isa, joined(lower, upper)), middle);
            each(group, isa.mul(isa.splat(d * f32::from(block[192 + group] as i8)), code));
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
}

#[cfg(test)]
mod tests {
    use exotherm_tensor::{DType, formats};

    use crate::cpu::product::decode;
    use crate::cpu::simd::Level;

    /// Random codes under scales of ordinary size, of either sign.
    fn blocks(dtype: DType, n: usize) -> Vec<u8> {
        let mut state = 11u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let mut bytes: Vec<u8> = (0..n * dtype.block_bytes()).map(|_| next()).collect();
        let scales: &[usize] = match dtype {
            DType::F32 => &[2],
            DType::Q8_0 | DType::Q4_0 | DType::Q5_0 => &[0],
            DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
            DType::Q2K => &[80, 82],
            DType::Q3K => &[108],
            DType::Q6K => &[208],
            DType::F16 | DType::BF16 => &[],
        };
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            for &at in scales {
                // The exponent of a half is in bits 2 to 6 of its second byte: keep it near 1.
                block[at + 1] = block[at + 1] & 0x83 | 0x38;
            }
        }
        bytes
    }

    #[test]
    fn every_level_decodes_as_the_reference_does() {
        for dtype in DType::all() {
            let n = 4096 / dtype.block_len().min(16) * 16 / dtype.block_len().max(16);
            let bytes = blocks(dtype, n);
            let len = n * dtype.block_len();
            let mut want = vec![0.0; len];
            formats::decode(dtype, &bytes, &mut want);
            for level in Level::available() {
                let mut have = vec![0.0; len];
                decode(level, dtype, &bytes, bytes.len(), &mut have);
                let differs = want.iter().zip(&have).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(differs.map(|i| (i, want[i], have[i])), None, "{dtype} at {}", level.name());
            }
        }
    }
}
