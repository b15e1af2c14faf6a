//! Block formats, one file each, bit-exact with GGUF's. `decode` and `encode` are the reference that every
//! faster kernel is held to.
//!
//! A format's file documents its layout and offers `decode_block` and `encode_block` on arrays of the block's
//! exact size. The loops inside run over fixed sizes without branches, so that a compiler turns them into vector
//! code for whatever processor the caller is built for.

pub mod bf16;
pub mod common;
pub mod f16;
pub mod f32;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;

pub use bf16::{bf16_to_f32, f32_to_bf16};
pub use f16::{f16_to_f32, f32_to_f16};

use crate::DType;

/// Decodes whole blocks of `dtype` in `bytes` into `out`. Panics if the lengths do not match.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    check_lengths(dtype, out.len(), bytes.len());
    match dtype {
        DType::F32 => decode_blocks(bytes, out, f32::decode_block),
        DType::F16 => decode_blocks(bytes, out, f16::decode_block),
        DType::BF16 => decode_blocks(bytes, out, bf16::decode_block),
        DType::Q8_0 => decode_blocks(bytes, out, q8_0::decode_block),
        DType::Q4_0 => decode_blocks(bytes, out, q4_0::decode_block),
        DType::Q4_1 => decode_blocks(bytes, out, q4_1::decode_block),
        DType::Q5_0 => decode_blocks(bytes, out, q5_0::decode_block),
        DType::Q5_1 => decode_blocks(bytes, out, q5_1::decode_block),
        DType::Q2K => decode_blocks(bytes, out, q2_k::decode_block),
        DType::Q3K => decode_blocks(bytes, out, q3_k::decode_block),
        DType::Q4K => decode_blocks(bytes, out, q4_k::decode_block),
        DType::Q5K => decode_blocks(bytes, out, q5_k::decode_block),
        DType::Q6K => decode_blocks(bytes, out, q6_k::decode_block),
    }
}

/// Encodes `values`, a whole number of blocks, into `bytes`. Panics if the lengths do not match. In quantized types,
/// values that are not finite give blocks that decode to something unspecified, but never a panic.
pub fn encode(dtype: DType, values: &[f32], bytes: &mut [u8]) {
    check_lengths(dtype, values.len(), bytes.len());
    match dtype {
        DType::F32 => encode_blocks(values, bytes, f32::encode_block),
        DType::F16 => encode_blocks(values, bytes, f16::encode_block),
        DType::BF16 => encode_blocks(values, bytes, bf16::encode_block),
        DType::Q8_0 => encode_blocks(values, bytes, q8_0::encode_block),
        DType::Q4_0 => encode_blocks(values, bytes, q4_0::encode_block),
        DType::Q4_1 => encode_blocks(values, bytes, q4_1::encode_block),
        DType::Q5_0 => encode_blocks(values, bytes, q5_0::encode_block),
        DType::Q5_1 => encode_blocks(values, bytes, q5_1::encode_block),
        DType::Q2K => encode_blocks(values, bytes, q2_k::encode_block),
        DType::Q3K => encode_blocks(values, bytes, q3_k::encode_block),
        DType::Q4K => encode_blocks(values, bytes, q4_k::encode_block),
        DType::Q5K => encode_blocks(values, bytes, q5_k::encode_block),
        DType::Q6K => encode_blocks(values, bytes, q6_k::encode_block),
    }
}

fn check_lengths(dtype: DType, elements: usize, bytes: usize) {
    assert_eq!(dtype.row_bytes(elements), Some(bytes), "{elements} elements of {dtype} in {bytes} bytes");
}

#[inline(always)]
fn decode_blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode_block: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, values) = (bytes.as_chunks().0, out.as_chunks_mut().0);
    for i in 0..blocks.len() {
        // A block is wide enough for vectors. Where the processor can gather, the compiler would rather take the same
        // element of many blocks together, byte by byte and ten times slower: hide from it that blocks lie in a row.
        let i = if LEN > 1 { std::hint::black_box(i) } else { i };
        decode_block(&blocks[i], &mut values[i]);
    }
}

#[inline(always)]
fn encode_blocks<const BYTES: usize, const LEN: usize>(
    values: &[f32],
    bytes: &mut [u8],
    encode_block: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    for (values, block) in values.as_chunks().0.iter().zip(bytes.as_chunks_mut().0) {
        encode_block(values, block);
    }
}

/// A wave that uses both signs, encoded and decoded again; the largest error as a fraction of the largest value.
#[cfg(test)]
fn round_trip_error(dtype: DType) -> f32 {
    let values: Vec<f32> = (0..512).map(|i| (i as f32 * 0.37).sin() * (1.0 + i as f32 / 256.0)).collect();
    let mut bytes = vec![0; dtype.row_bytes(values.len()).unwrap()];
    let mut back = vec![0.0; values.len()];
    encode(dtype, &values, &mut bytes);
    decode(dtype, &bytes, &mut back);
    let error = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    error / values.iter().fold(0.0, |m: f32, v| m.max(v.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "32 elements of q4_0 in 17 bytes")]
    fn mismatched_lengths_panic() {
        decode(DType::Q4_0, &[0; 17], &mut [0.0; 32]);
    }

    #[test]
    fn no_blocks_are_fine() {
        for dtype in DType::all() {
            decode(dtype, &[], &mut []);
            encode(dtype, &[], &mut []);
        }
    }
}
