//! Q2_K: 256 two-bit codes in 16 groups of 16, each group with a four-bit scale and minimum.
//! `value = d * scale * q - d_min * min`
//!
//! | bytes | field |
//! |---|---|
//! | 0..16 | group `g`: scale in the low nibble, minimum in the high nibble |
//! | 16..80 | two-bit planes: byte `32h + i` holds `q[128h + i]`, `q[128h + 32 + i]`, … from the lowest bits up |
//! | 80..82 | `d`, f16 |
//! | 82..84 | `d_min`, f16 |

use super::common::{AffineFit, Metric, each, encode_affine, f16_at, pack_two_bit_planes, put_bits};

#[inline]
pub fn decode_block(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, d_min) = (f16_at(block, 80), f16_at(block, 82));
    let planes = block[16..80].as_chunks::<32>().0;
    for (g, group) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * (block[g] & 15) as f32;
        let min = d_min * (block[g] >> 4) as f32;
        let shift = g / 2 % 4 * 2;
        let plane = &planes[g / 8].as_chunks::<16>().0[g % 2];
        for (value, &q) in group.iter_mut().zip(plane) {
            *value = scale * ((q >> shift) & 3) as f32 - min;
        }
    }
}

const FIT: AffineFit =
    AffineFit { code_max: 3.0, first: -0.5, steps: 15, metric: Metric::Absolute, levels: 15.0 };

pub fn encode_block(values: &[f32; 256], block: &mut [u8; 84]) {
    let fitted = encode_affine::<16, 16>(values, &FIT, |group| each(group, f32::abs));
    for (byte, (scale, min)) in block[..16].iter_mut().zip(fitted.scales.iter().zip(fitted.mins)) {
        *byte = scale | min << 4;
    }
    block[16..80].copy_from_slice(&pack_two_bit_planes(&fitted.codes));
    put_bits(block, 80, fitted.d);
    put_bits(block, 82, fitted.d_min);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn planes_are_read_in_order() {
        let mut block = [0; 84];
        block[..16].fill(1);
        block[16 + 32 + 5] = 0b11_10_01_00;
        put_bits(&mut block, 80, formats::f32_to_f16(1.0));
        let mut out = [0.0; 256];
        decode_block(&block, &mut out);
        assert_eq!([out[133], out[165], out[197], out[229]], [0.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn round_trip_errs_by_two_thirds_of_a_step_at_most() {
        assert!(formats::round_trip_error(DType::Q2K) < 0.67 * 2.0 / 3.0);
    }
}
