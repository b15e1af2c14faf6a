//! Q8_0: 32 signed bytes under one scale. `value = d * q`
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | `d`, f16 |
//! | 2..34 | `q[0..32]`, i8 |

use super::common::{f16_at, largest_magnitude, put_f16, reciprocal_or_zero, round_half_away};

#[inline]
pub fn decode_block(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (value, &q) in out.iter_mut().zip(&block[2..]) {
        *value = d * (q as i8) as f32;
    }
}

#[inline]
pub fn encode_block(values: &[f32; 32], block: &mut [u8; 34]) {
    let d = largest_magnitude(values) / 127.0;
    let inverse = reciprocal_or_zero(d);
    put_f16(block, 0, d);
    for (q, &value) in block[2..].iter_mut().zip(values) {
        *q = round_half_away(value * inverse) as i32 as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn halves_round_away_from_zero() {
        let mut values = [0.0; 32];
        values[..5].copy_from_slice(&[127.0, 0.5, -0.5, 2.5, 0.49999997]);
        let mut block = [0; 34];
        encode_block(&values, &mut block);
        assert_eq!(block[2..7], [127, 1, -1i8 as u8, 3, 0]);
    }

    #[test]
    fn round_trip_errs_by_half_a_step_at_most() {
        assert!(formats::round_trip_error(DType::Q8_0) < 0.57 / 127.0);
    }
}
