//! Q4_K: 256 four-bit codes in 8 groups of 32, each group with a six-bit scale and minimum.
//! `value = d * scale * q - d_min * min`
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | `d`, f16 |
//! | 2..4 | `d_min`, f16 |
//! | 4..16 | scales and minima, see [`unpack_scales_and_mins`] |
//! | 16..144 | byte `32p + i`: low nibble `q[64p + i]`, high nibble `q[64p + 32 + i]` |

use super::common::{
    AffineFit, Metric, encode_affine, f16_at, magnitude_above_rms, pack_nibble_pairs, pack_scales_and_mins,
    put_bits, unpack_scales_and_mins,
};

#[inline]
pub fn decode_block(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, d_min) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, mins) = unpack_scales_and_mins(&block[4..16]);
    let (pairs, packed) = (out.as_chunks_mut::<64>().0, block[16..].as_chunks::<32>().0);
    for (p, (pair, packed)) in pairs.iter_mut().zip(packed).enumerate() {
        let (scale_a, min_a) = (d * scales[2 * p] as f32, d_min * mins[2 * p] as f32);
        let (scale_b, min_b) = (d * scales[2 * p + 1] as f32, d_min * mins[2 * p + 1] as f32);
        let (low, high) = pair.split_at_mut(32);
        for ((low, high), &q) in low.iter_mut().zip(high).zip(packed) {
            *low = scale_a * (q & 15) as f32 - min_a;
            *high = scale_b * (q >> 4) as f32 - min_b;
        }
    }
}

const FIT: AffineFit =
    AffineFit { code_max: 15.0, first: -1.0, steps: 20, metric: Metric::Squared, levels: 63.0 };

pub fn encode_block(values: &[f32; 256], block: &mut [u8; 144]) {
    let fitted = encode_affine::<8, 32>(values, &FIT, magnitude_above_rms);
    put_bits(block, 0, fitted.d);
    put_bits(block, 2, fitted.d_min);
    block[4..16].copy_from_slice(&pack_scales_and_mins(&fitted.scales, &fitted.mins));
    block[16..].copy_from_slice(&pack_nibble_pairs(&fitted.codes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn nibbles_and_groups_are_read_in_order() {
        let mut block = [0; 144];
        put_bits(&mut block, 0, formats::f32_to_f16(0.5));
        put_bits(&mut block, 2, formats::f32_to_f16(1.0));
        block[4..16]
            .copy_from_slice(&pack_scales_and_mins(&[1, 2, 3, 4, 5, 6, 7, 8], &[0, 0, 0, 0, 0, 9, 0, 0]));
        block[16 + 64 + 1] = 0x73;
        let mut out = [0.0; 256];
        decode_block(&block, &mut out);
        assert_eq!([out[129], out[161], out[160]], [0.5 * 5.0 * 3.0, 0.5 * 6.0 * 7.0 - 9.0, -9.0]);
    }

    #[test]
    fn round_trip_errs_by_two_thirds_of_a_step_at_most() {
        assert!(formats::round_trip_error(DType::Q4K) < 0.67 * 2.0 / 15.0);
    }
}
