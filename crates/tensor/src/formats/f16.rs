//! F16: IEEE 754 half precision, little-endian. The scales of the block formats are stored so, too.
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | sign (1 bit), exponent (5), mantissa (10) |
//!
//! The conversions are our own because a call that first asks the processor for its features keeps the loop
//! around it from becoming vector code.

#[inline(always)]
pub fn decode_block(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f16_to_f32(u16::from_le_bytes(*block));
}

#[inline(always)]
pub fn encode_block(values: &[f32; 1], block: &mut [u8; 2]) {
    *block = f32_to_f16(values[0]).to_le_bytes();
}

/// The value of a half-precision number; exact. Signalling NaNs become quiet, as in hardware.
#[inline(always)]
pub fn f16_to_f32(half: u16) -> f32 {
    const EXPONENT: u32 = 0x1f << 23;
    /// Moves an exponent from half precision's bias to single precision's.
    const REBIAS: u32 = (127 - 15) << 23;
    const SMALLEST_NORMAL: f32 = f32::from_bits(REBIAS + (1 << 23));
    let sign = (half as u32 & 0x8000) << 16;
    let shifted = (half as u32 & 0x7fff) << 13;
    let normal = shifted + REBIAS;
    // A subnormal has no hidden one: put it there by taking the next exponent, then subtract it again.
    let subnormal = (f32::from_bits(normal + (1 << 23)) - SMALLEST_NORMAL).to_bits();
    let quiet = if shifted > EXPONENT { 1 << 22 } else { 0 };
    let special = (normal + REBIAS) | quiet;
    let magnitude = if shifted < (1 << 23) {
        subnormal
    } else if shifted < EXPONENT {
        normal
    } else {
        special
    };
    f32::from_bits(sign | magnitude)
}

/// The nearest half-precision number, ties to even; NaN stays NaN, what is too large becomes infinite.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    const INFINITY: u32 = 0x7f80_0000;
    /// 65536, from where on everything is infinite; 65520 gets there by rounding.
    const TOO_LARGE: u32 = (127 + 16) << 23;
    const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
    const REBIAS: u32 = (127 - 15) << 23;
    let sign = (value.to_bits() >> 16) & 0x8000;
    let bits = value.to_bits() & 0x7fff_ffff;
    let nan = 0x7e00 | ((bits >> 13) & 0x3ff);
    let special = if bits > INFINITY { nan } else { 0x7c00 };
    // The last place of 0.5 is half precision's smallest step: the addition rounds to it.
    let subnormal = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let to_even = 0xfff + ((bits >> 13) & 1);
    let normal = bits.wrapping_sub(REBIAS).wrapping_add(to_even) >> 13;
    let magnitude = if bits >= TOO_LARGE {
        special
    } else if bits < SMALLEST_NORMAL {
        subnormal
    } else {
        normal
    };
    (sign | magnitude) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, formats};

    #[test]
    fn every_half_widens_as_the_half_crate_says() {
        for bits in 0..=u16::MAX {
            let want = half::f16::from_bits(bits).to_f32();
            assert_eq!(f16_to_f32(bits).to_bits(), want.to_bits(), "{bits:#06x}");
        }
    }

    /// Rounding changes at the halves and at the middles between them: these and their neighbours decide.
    #[test]
    fn every_rounding_decision_agrees_with_the_half_crate() {
        for bits in 0..0x7c00u16 {
            let (here, next) = (f16_to_f32(bits), f16_to_f32(bits + 1).min(65536.0));
            let middle = here + (next - here) / 2.0;
            for value in [here, middle, middle.next_up(), middle.next_down(), -middle] {
                let want = half::f16::from_f32(value).to_bits();
                assert_eq!(f32_to_f16(value), want, "{value:e}");
            }
        }
    }

    #[test]
    fn specials_agree_with_the_half_crate() {
        let signalling = f32::from_bits(0x7f80_0001);
        for value in [f32::INFINITY, f32::MAX, 1e-40, f32::from_bits(1), f32::NAN, signalling, -f32::NAN] {
            for value in [value, -value] {
                let (got, want) = (f32_to_f16(value), half::f16::from_f32(value));
                assert_eq!(half::f16::from_bits(got).is_nan(), value.is_nan());
                assert!(value.is_nan() || got == want.to_bits(), "{value:e}");
            }
        }
    }

    #[test]
    fn round_trip_keeps_eleven_bits() {
        assert!(formats::round_trip_error(DType::F16) < 1.0 / 2048.0);
    }
}
