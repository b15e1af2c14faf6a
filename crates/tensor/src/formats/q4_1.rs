//! Q4_1: 32 four-bit codes between the smallest and the largest value. `value = d * q + m`
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | `d`, f16 |
//! | 2..4 | `m`, f16 |
//! | 4..20 | low nibbles `q[0..16]`, high nibbles `q[16..32]` |

use super::common::{
    each, f16_at, min_and_max, pack_nibbles, put_f16, reciprocal_or_zero, truncate_to_code, unpack_nibbles,
};

#[inline]
pub fn decode_block(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (value, q) in out.iter_mut().zip(unpack_nibbles(&block[4..])) {
        *value = d * q as f32 + m;
    }
}

#[inline]
pub fn encode_block(values: &[f32; 32], block: &mut [u8; 20]) {
    let (min, max) = min_and_max(values);
    let d = (max - min) / 15.0;
    let inverse = reciprocal_or_zero(d);
    put_f16(block, 0, d);
    put_f16(block, 2, min);
    let codes = each(values, |v| truncate_to_code((v - min) * inverse + 0.5, 15.0));
    block[4..].copy_from_slice(&pack_nibbles(&codes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn sixteen_even_steps_are_exact() {
        let values: [f32; 32] = std::array::from_fn(|i| (i % 16) as f32 * 0.25 - 1.0);
        let (mut block, mut back) = ([0; 20], [0.0; 32]);
        encode_block(&values, &mut block);
        decode_block(&block, &mut back);
        assert_eq!(back, values);
    }

    #[test]
    fn round_trip_errs_by_half_a_step_at_most() {
        assert!(formats::round_trip_error(DType::Q4_1) < 0.52 * 2.0 / 15.0);
    }
}
