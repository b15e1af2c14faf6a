//! Q5_K: 256 five-bit codes in 8 groups of 32, each group with a six-bit scale and minimum.
//! `value = d * scale * q - d_min * min`
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | `d`, f16 |
//! | 2..4 | `d_min`, f16 |
//! | 4..16 | scales and minima, see [`unpack_scales_and_mins`] |
//! | 16..48 | the fifth bits: bit `g` of byte `i` belongs to `q[32g + i]` |
//! | 48..176 | byte `32p + i`: low nibble of `q[64p + i]`, then that of `q[64p + 32 + i]` |

use super::common::{
    AffineFit, Metric, encode_affine, f16_at, magnitude_above_rms, pack_nibble_pairs, pack_scales_and_mins,
    put_bits, unpack_scales_and_mins,
};

#[inline]
pub fn decode_block(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, d_min) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, mins) = unpack_scales_and_mins(&block[4..16]);
    let fifths = &block[16..48];
    let (pairs, packed) = (out.as_chunks_mut::<64>().0, block[48..].as_chunks::<32>().0);
    for (p, (pair, packed)) in pairs.iter_mut().zip(packed).enumerate() {
        let (scale_a, min_a) = (d * scales[2 * p] as f32, d_min * mins[2 * p] as f32);
        let (scale_b, min_b) = (d * scales[2 * p + 1] as f32, d_min * mins[2 * p + 1] as f32);
        let (low, high) = pair.split_at_mut(32);
        for (((low, high), &q), &fifth) in low.iter_mut().zip(high).zip(packed).zip(fifths) {
            let fifth = fifth >> (2 * p);
            *low = scale_a * (q & 15 | (fifth & 1) << 4) as f32 - min_a;
            *high = scale_b * (q >> 4 | (fifth & 2) << 3) as f32 - min_b;
        }
    }
}

const FIT: AffineFit =
    AffineFit { code_max: 31.0, first: -0.5, steps: 15, metric: Metric::Squared, levels: 63.0 };

pub fn encode_block(values: &[f32; 256], block: &mut [u8; 176]) {
    let fitted = encode_affine::<8, 32>(values, &FIT, magnitude_above_rms);
    put_bits(block, 0, fitted.d);
    put_bits(block, 2, fitted.d_min);
    block[4..16].copy_from_slice(&pack_scales_and_mins(&fitted.scales, &fitted.mins));
    block[16..48].fill(0);
    for (g, group) in fitted.codes.as_chunks::<32>().0.iter().enumerate() {
        for (fifth, &q) in block[16..48].iter_mut().zip(group) {
            *fifth |= (q >> 4) << g;
        }
    }
    block[48..].copy_from_slice(&pack_nibble_pairs(&fitted.codes.map(|q| q & 15)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn fifth_bits_belong_to_their_groups() {
        let mut block = [0; 176];
        put_bits(&mut block, 0, formats::f32_to_f16(1.0));
        block[4..16].copy_from_slice(&pack_scales_and_mins(&[1; 8], &[0; 8]));
        block[16 + 7] = 0b0010_0100;
        block[48 + 64 + 7] = 0x21;
        let mut out = [0.0; 256];
        decode_block(&block, &mut out);
        assert_eq!([out[64 + 7], out[128 + 7], out[160 + 7]], [16.0, 1.0, 18.0]);
    }

    #[test]
    fn round_trip_errs_by_two_thirds_of_a_step_at_most() {
        assert!(formats::round_trip_error(DType::Q5K) < 0.67 * 2.0 / 31.0);
    }
}
