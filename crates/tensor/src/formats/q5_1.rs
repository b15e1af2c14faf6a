//! Q5_1: 32 five-bit codes between the smallest and the largest value. `value = d * q + m`
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | `d`, f16 |
//! | 2..4 | `m`, f16 |
//! | 4..8 | the fifth bits, bit `i` belongs to `q[i]` |
//! | 8..24 | low nibbles `q[0..16]`, high nibbles `q[16..32]` |

use super::common::{
    each, f16_at, fifth_bit, min_and_max, pack_fifth_bits, pack_nibbles, put_f16, reciprocal_or_zero,
    truncate_to_code, u32_at,
};

#[inline]
pub fn decode_block(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m, fifth) = (f16_at(block, 0), f16_at(block, 2), u32_at(block, 4));
    let (low, high) = out.split_at_mut(16);
    for (i, ((low, high), &q)) in low.iter_mut().zip(high).zip(&block[8..]).enumerate() {
        *low = d * ((q & 15) as u32 | fifth_bit(fifth, i)) as i32 as f32 + m;
        *high = d * ((q >> 4) as u32 | fifth_bit(fifth, i + 16)) as i32 as f32 + m;
    }
}

#[inline]
pub fn encode_block(values: &[f32; 32], block: &mut [u8; 24]) {
    let (min, max) = min_and_max(values);
    let d = (max - min) / 31.0;
    let inverse = reciprocal_or_zero(d);
    put_f16(block, 0, d);
    put_f16(block, 2, min);
    let codes = each(values, |v| truncate_to_code((v - min) * inverse + 0.5, 31.0));
    block[4..8].copy_from_slice(&pack_fifth_bits(&codes));
    block[8..].copy_from_slice(&pack_nibbles(&codes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn thirty_two_even_steps_are_exact() {
        let values: [f32; 32] = std::array::from_fn(|i| i as f32 * 0.5 + 3.0);
        let (mut block, mut back) = ([0; 24], [0.0; 32]);
        encode_block(&values, &mut block);
        decode_block(&block, &mut back);
        assert_eq!(back, values);
    }

    #[test]
    fn round_trip_errs_by_half_a_step_at_most() {
        assert!(formats::round_trip_error(DType::Q5_1) < 0.53 * 2.0 / 31.0);
    }
}
