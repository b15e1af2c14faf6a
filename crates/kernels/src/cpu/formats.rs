//! Float weights as vectors, value for value what `exotherm_tensor::formats::decode` makes of them.

use super::simd::{Isa, WIDTH};

/// `BYTES` bytes that hold `LEN` elements, one vector; packed rows are padded with zeros to whole ones.
pub(super) trait Format<const BYTES: usize, const LEN: usize> {
    /// Calls `each` with the number and the values of every vector of the block, in order.
    fn vectors<I: Isa>(isa: I, block: &[u8; BYTES], each: impl FnMut(usize, I::V));
}

#[inline(always)]
fn u16s(bytes: &[u8; 32]) -> [u16; WIDTH] {
    std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]))
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

#[cfg(test)]
mod tests {
    use exotherm_tensor::{DType, formats};

    use crate::cpu::product::decode;
    use crate::cpu::simd::Level;

    /// Random values.
    fn values(dtype: DType, n: usize) -> Vec<u8> {
        let mut state = 11u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let mut bytes: Vec<u8> = (0..n * dtype.block_bytes()).map(|_| next()).collect();
        if dtype == DType::F32 {
            // Keep the exponent near that of 1.
            bytes.chunks_exact_mut(4).for_each(|value| value[3] = value[3] & 0x83 | 0x38);
        }
        bytes
    }

    #[test]
    fn every_level_decodes_as_the_reference_does() {
        for dtype in DType::all().filter(|t| !t.is_quantized()) {
            let n = 4096;
            let bytes = values(dtype, n);
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
