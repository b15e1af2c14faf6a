//! Q4_0: 32 four-bit codes around a fixed middle. `value = d * (q - 8)`
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | `d`, f16; the code 0 stands for the value of largest magnitude, so `d` may be negative |
//! | 2..18 | low nibbles `q[0..16]`, high nibbles `q[16..32]` |

use super::common::{
    each, f16_at, pack_nibbles, put_f16, reciprocal_or_zero, signed_peak, truncate_to_code, unpack_nibbles,
};

#[inline]
pub fn decode_block(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (value, q) in out.iter_mut().zip(unpack_nibbles(&block[2..])) {
        *value = d * (q as i32 - 8) as f32;
    }
}

#[inline]
pub fn encode_block(values: &[f32; 32], block: &mut [u8; 18]) {
    let d = signed_peak(values) / -8.0;
    let inverse = reciprocal_or_zero(d);
    put_f16(block, 0, d);
    let codes = each(values, |v| truncate_to_code(v * inverse + 8.5, 15.0));
    block[2..].copy_from_slice(&pack_nibbles(&codes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn first_peak_gets_code_zero_and_its_opposite_is_clamped() {
        let mut values = [0.0; 32];
        (values[3], values[20]) = (4.0, -4.0);
        let (mut block, mut back) = ([0; 18], [0.0; 32]);
        encode_block(&values, &mut block);
        decode_block(&block, &mut back);
        assert_eq!(back[3], 4.0);
        assert_eq!(back[20], -3.5);
        assert_eq!(back[0], 0.0);
    }

    #[test]
    fn round_trip_errs_by_a_step_at_most() {
        assert!(formats::round_trip_error(DType::Q4_0) < 1.01 / 8.0);
    }
}
