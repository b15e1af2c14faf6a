//! Q5_0: 32 five-bit codes around a fixed middle. `value = d * (q - 16)`
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | `d`, f16; the code 0 stands for the value of largest magnitude, so `d` may be negative |
//! | 2..6 | the fifth bits, bit `i` belongs to `q[i]` |
//! | 6..22 | low nibbles `q[0..16]`, high nibbles `q[16..32]` |

use super::common::{
    each, f16_at, fifth_bit, pack_fifth_bits, pack_nibbles, put_f16, reciprocal_or_zero, signed_peak,
    truncate_to_code, u32_at,
};

#[inline]
pub fn decode_block(block: &[u8; 22], out: &mut [f32; 32]) {
    let (d, fifth) = (f16_at(block, 0), u32_at(block, 2));
    let (low, high) = out.split_at_mut(16);
    for (i, ((low, high), &q)) in low.iter_mut().zip(high).zip(&block[6..]).enumerate() {
        *low = d * (((q & 15) as u32 | fifth_bit(fifth, i)) as i32 - 16) as f32;
        *high = d * (((q >> 4) as u32 | fifth_bit(fifth, i + 16)) as i32 - 16) as f32;
    }
}

#[inline]
pub fn encode_block(values: &[f32; 32], block: &mut [u8; 22]) {
    let d = signed_peak(values) / -16.0;
    let inverse = reciprocal_or_zero(d);
    put_f16(block, 0, d);
    let codes = each(values, |v| truncate_to_code(v * inverse + 16.5, 31.0));
    block[2..6].copy_from_slice(&pack_fifth_bits(&codes));
    block[6..].copy_from_slice(&pack_nibbles(&codes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn all_thirty_two_codes_are_exact() {
        let values: [f32; 32] = std::array::from_fn(|i| i as f32 - 16.0);
        let (mut block, mut back) = ([0; 22], [0.0; 32]);
        encode_block(&values, &mut block);
        decode_block(&block, &mut back);
        assert_eq!(back, values);
    }

    #[test]
    fn round_trip_errs_by_a_step_at_most() {
        assert!(formats::round_trip_error(DType::Q5_0) < 1.01 / 16.0);
    }
}
