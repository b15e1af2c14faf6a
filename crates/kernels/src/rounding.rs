//! What activations are rounded to before they are multiplied with weights of a type, defined once for all backends.

use exotherm_tensor::DType;
use exotherm_tensor::formats::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// Values that share one scale.
pub const INT8_BLOCK: usize = 32;

/// Whether a backend multiplies activations as they are or rounded as the type of the weights asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Activations {
    #[default]
    Exact,
    /// To integers where weights are quantized.
    Rounded,
    /// And to BF16 where weights are BF16.
    RoundedToBf16,
    /// To F16 where weights are anything but F32; the weights are rounded to F16, too. A router chooses among experts by
    /// activations as they are.
    RoundedToF16,
}

/// What activations become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    None,
    /// Integers of −127 to 127 times a scale for every [`INT8_BLOCK`] values.
    Int8,
    /// The nearest BF16, of two the even one; zero in place of what is less than all normal numbers.
    Bf16,
    /// The nearest F16, of two the even one, times a power of two for the row, see [`half_scales`].
    F16,
}

impl Activations {
    /// What becomes of activations that meet weights of this type.
    pub fn rounding(self, weights: DType) -> Rounding {
        match self {
            Activations::Rounded | Activations::RoundedToBf16 if weights.is_quantized() => Rounding::Int8,
            Activations::RoundedToBf16 if weights == DType::BF16 => Rounding::Bf16,
            Activations::RoundedToF16 if weights != DType::F32 => Rounding::F16,
            _ => Rounding::None,
        }
    }

    /// How a router sees them.
    pub fn of_routes(self) -> Activations {
        if self == Activations::RoundedToF16 { Activations::Exact } else { self }
    }
}

impl Rounding {
    /// What becomes of the weights. What is past the largest F16 is infinite, so that its products are no numbers and are
    /// noticed; no weights of models come near it.
    pub fn round_weights(self, weights: &mut [f32]) {
        if self == Rounding::F16 {
            weights.iter_mut().for_each(|w| *w = f16_to_f32(f32_to_f16(*w)));
        }
    }
}

/// Blocks whose values are all of this magnitude or less count as zero: 127 over less may not be a number.
pub(crate) const NOTHING: f32 = 1e-36;

/// The integers of a block go to `codes`; returns the scale, which is no number if a value is none. `values` may be less than a whole block.
pub fn int8_block(values: &[f32], codes: &mut [i8]) -> f32 {
    // As bits, in which what is no number is larger than any number and so is not lost.
    let largest = f32::from_bits(values.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0));
    let inverse = if largest > NOTHING { 127.0 / largest } else { 0.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse).round_ties_even() as i8;
    }
    largest / 127.0
}

/// The nearest BF16 as instructions for its products take it.
pub fn bf16(value: f32) -> u16 {
    let tiny = value.is_subnormal();
    f32_to_bf16(if tiny { 0.0f32.copysign(value) } else { value })
}

/// The power of two that a row is multiplied with before it is rounded to F16, and its inverse. The largest value comes to
/// lie between 2^14 and 2^15, so none overflows and those that are 2^29 times smaller still keep all their bits. Zeros, and rows with
/// something that is no number or infinite, stay as they are: no result of such a row is a number anyway.
pub fn half_scales(row: &[f32]) -> (f32, f32) {
    let largest = row.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    if largest == 0 || largest >= f32::INFINITY.to_bits() {
        return (1.0, 1.0);
    }
    // Both powers are normal numbers; the scale is 2^14 over that of the largest value.
    let exponent = (largest >> 23).max(15);
    (f32::from_bits((268 - exponent) << 23), f32::from_bits((exponent - 14) << 23))
}

/// A row as a backend that rounds so sees it.
pub fn rounded(rounding: Rounding, row: &[f32]) -> Vec<f32> {
    match rounding {
        Rounding::None => row.to_vec(),
        Rounding::Bf16 => row.iter().map(|&v| bf16_to_f32(bf16(v))).collect(),
        Rounding::F16 => {
            let (scale, inverse) = half_scales(row);
            row.iter().map(|&v| f16_to_f32(f32_to_f16(v * scale)) * inverse).collect()
        }
        Rounding::Int8 => {
            let block = |values: &[f32]| {
                let mut codes = [0; INT8_BLOCK];
                let scale = int8_block(values, &mut codes);
                codes.into_iter().take(values.len()).map(move |code| scale * f32::from(code))
            };
            row.chunks(INT8_BLOCK).flat_map(block).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_move_by_half_a_step_at_most() {
        let row: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * (i / 32 + 1) as f32).collect();
        let have = rounded(Rounding::Int8, &row);
        assert_eq!(have.len(), row.len());
        for (have, want) in have.chunks(INT8_BLOCK).zip(row.chunks(INT8_BLOCK)) {
            let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (have, want) in have.iter().zip(want) {
                assert!((have - want).abs() <= largest / 127.0 * 0.5001, "{have} {want}");
            }
        }
        assert_eq!(rounded(Rounding::Int8, &[0.0; 40]), [0.0; 40]);
        assert_eq!(rounded(Rounding::Int8, &[1e-37; 40]), [0.0; 40]);
        assert_eq!(rounded(Rounding::None, &row), row);
    }

    #[test]
    fn bf16_keeps_eight_bits_and_what_is_no_number() {
        let row = [
            1.0 + 1.0 / 256.0,
            -1.0 - 3.0 / 256.0,
            3.4e38,
            f32::NEG_INFINITY,
            1e-39,
            -1.17e-38,
            0.0,
            1.5e-38,
        ];
        let want =
            [1.0, -1.015625, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 0.0, f32::from_bits(0x00a3_0000)];
        let have = rounded(Rounding::Bf16, &row);
        assert_eq!(have.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), want.map(f32::to_bits));
        assert!(rounded(Rounding::Bf16, &[f32::from_bits(0x7f80_0001)])[0].is_nan());
    }

    #[test]
    fn f16_keeps_eleven_bits_whatever_the_magnitude() {
        for magnitude in [1e-37, 3e-5, 1.0, 7e4, 3e38] {
            let row: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * magnitude).collect();
            for (have, want) in rounded(Rounding::F16, &row).iter().zip(&row) {
                assert!((have - want).abs() <= want.abs() / 2047.0, "{have} {want}");
            }
        }
        assert_eq!(rounded(Rounding::F16, &[0.0, -0.0]), [0.0, 0.0]);
        assert_eq!(half_scales(&[1.0, -2.0]), (8192.0, 1.0 / 8192.0));
        assert_eq!(half_scales(&[1e-45]), (f32::from_bits(253 << 23), f32::from_bits(1 << 23)));
        let odd = rounded(Rounding::F16, &[f32::NAN, f32::NEG_INFINITY, 1.0]);
        assert!(odd[0].is_nan() && odd[1..] == [f32::NEG_INFINITY, 1.0]);
    }

    #[test]
    fn the_weights_say_what_activations_become() {
        for dtype in DType::all() {
            let ints = if dtype.is_quantized() { Rounding::Int8 } else { Rounding::None };
            let pairs = if dtype == DType::BF16 { Rounding::Bf16 } else { ints };
            assert_eq!(Activations::Exact.rounding(dtype), Rounding::None);
            assert_eq!(Activations::Rounded.rounding(dtype), ints, "{dtype}");
            assert_eq!(Activations::RoundedToBf16.rounding(dtype), pairs, "{dtype}");
            let halves = if dtype == DType::F32 { Rounding::None } else { Rounding::F16 };
            assert_eq!(Activations::RoundedToF16.rounding(dtype), halves, "{dtype}");
        }
    }
}
