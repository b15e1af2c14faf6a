//! BF16: the upper half of an IEEE 754 single, little-endian.
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | sign (1 bit), exponent (8), mantissa (7) |

#[inline(always)]
pub fn decode_block(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = bf16_to_f32(u16::from_le_bytes(*block));
}

#[inline(always)]
pub fn encode_block(values: &[f32; 1], block: &mut [u8; 2]) {
    *block = f32_to_bf16(values[0]).to_le_bytes();
}

#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// The nearest bfloat16, ties to even; NaN stays NaN and becomes quiet.
#[inline(always)]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let nan = (bits >> 16) | 0x40;
    let to_even = 0x7fff + ((bits >> 16) & 1);
    let rounded = bits.wrapping_add(to_even) >> 16;
    (if value.is_nan() { nan } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn rounds_as_the_half_crate_does() {
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits((upper as u32) << 16 | lower);
                assert_eq!(f32_to_bf16(value), half::bf16::from_f32(value).to_bits(), "{value:e}");
            }
        }
    }

    #[test]
    fn round_trip_keeps_eight_bits() {
        assert!(formats::round_trip_error(DType::BF16) < 1.0 / 256.0);
    }
}
