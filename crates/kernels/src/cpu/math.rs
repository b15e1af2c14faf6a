//! Functions of one value. They have no branches but selections and are the same arithmetic wherever they are
//! inlined, so that a loop over them becomes vector code with the same bits.

/// 1.5 · 2^23: adding it leaves the nearest integer in the lowest bits.
const NO_FRACTION: f32 = 12_582_912.0;

/// e^x to about one part in 10^7; 0 far below, infinite far above.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + NO_FRACTION;
    let twos = shifted - NO_FRACTION;
    let power = shifted.to_bits().wrapping_sub(NO_FRACTION.to_bits()) as i32;
    let r = x - twos * LN_2_HIGH - twos * LN_2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let value = p * (r * r) + r + 1.0;
    // In two steps, because 2^power may be no normal number where the product is one.
    let half = power >> 1;
    value * power_of_two(half) * power_of_two(power - half)
}

/// Coefficients of r^0, r^1, … in 2^r for r in -0.5..=0.5, good to one part in 10^8.
pub(super) const EXP2: [f32; 7] =
    [1.0, std::f32::consts::LN_2, 0.240_226_5, 0.055_503_57, 9.618_083e-3, 1.339_086_3e-3, 1.545_316_3e-4];
/// Powers below are 0 (they would be no normal numbers, which are slow to make).
pub(super) const EXP2_LOWEST: f32 = -126.0;

/// 2^x to about one part in 10^7 for x up to 127; 0 far below.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let is_small = x < EXP2_LOWEST;
    let x = if is_small { EXP2_LOWEST } else { x };
    let shifted = x + NO_FRACTION;
    let r = x - (shifted - NO_FRACTION);
    let mut p = EXP2[EXP2.len() - 1];
    let mut i = EXP2.len() - 1;
    while i > 0 {
        i -= 1;
        p = p * r + EXP2[i];
    }
    let power = shifted.to_bits().wrapping_sub(NO_FRACTION.to_bits()) as i32;
    if is_small { 0.0 } else { p * power_of_two(power) }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let magnitude = x.abs();
    let far = 1.0 - 2.0 / (exp(2.0 * magnitude) + 1.0);
    // Near zero the difference above has too few digits.
    let z = x * x;
    let p = -5.704_989e-3;
    let p = p * z + 2.063_909e-2;
    let p = p * z - 5.373_971_6e-2;
    let p = p * z + 1.333_144_2e-1;
    let p = p * z - 3.333_328e-1;
    let near = p * z * x + x;
    if magnitude < 0.625 { near } else { far.copysign(x) }
}

#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    // (1 + tanh(u)) / 2 is sigmoid(2u), which keeps its digits where tanh nears -1.
    let u = SQRT_2_OVER_PI * (x + 0.044715 * (x * x * x));
    x * sigmoid(2.0 * u)
}

#[inline(always)]
pub(crate) fn gelu_erf(x: f32) -> f32 {
    0.5 * x * erfc(-x * std::f32::consts::FRAC_1_SQRT_2)
}

/// The complementary error function: Chebyshev's fit to erfc(z) · e^(z²) / t with t = 1 / (1 + z/2), good to 1.2 parts
/// in 10^7 by itself.
#[inline(always)]
fn erfc(x: f32) -> f32 {
    let z = x.abs();
    let t = 1.0 / (1.0 + 0.5 * z);
    let p = 0.170_872_77;
    let p = p * t - 0.822_152_23;
    let p = p * t + 1.488_515_9;
    let p = p * t - 1.135_204;
    let p = p * t + 0.278_868_07;
    let p = p * t - 0.186_288_06;
    let p = p * t + 0.096_784_18;
    let p = p * t + 0.374_091_96;
    let p = p * t + 1.000_023_7;
    let tail = t * exp(-z * z - 1.265_512_2 + t * p);
    if x < 0.0 { 2.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(
        f: impl Fn(f32) -> f32,
        want: impl Fn(f64) -> f64,
        range: std::ops::Range<i32>,
        scale: f64,
    ) -> f64 {
        let error = |i: i32| {
            let x = (f64::from(i) * scale) as f32;
            let want = want(f64::from(x));
            (f64::from(f(x)) - want).abs() / want.abs().max(1e-30)
        };
        range.map(error).fold(0.0, f64::max)
    }

    fn gelu(x: f64) -> f64 {
        f64::from(crate::reference::activate(crate::ops::Activation::GeluErf, x as f32))
    }

    #[test]
    fn agree_with_f64() {
        assert!(worst(exp, f64::exp, -8700..8870, 0.01) < 2e-7);
        assert!(worst(tanh, f64::tanh, -9000..9000, 0.00123) < 3e-7);
        assert!(worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -6000..6000, 0.01) < 3e-7);
        assert!(worst(silu, |x| x / (1.0 + (-x).exp()), -6000..6000, 0.01) < 3e-7);
        let gelu_tanh_f64 =
            |x: f64| x / (1.0 + (-1.595_769_121_605_730_7 * (x + 0.044715 * x * x * x)).exp());
        assert!(worst(gelu_tanh, gelu_tanh_f64, -300..3000, 0.01) < 1e-6);
        assert!(worst(gelu_erf, gelu, -300..3000, 0.01) < 3e-6);
    }

    #[test]
    fn are_stable_far_out() {
        for x in [1e4f32, 3e38, f32::INFINITY] {
            assert_eq!((exp(-x), exp(x)), (0.0, f32::INFINITY));
            assert_eq!((tanh(-x), tanh(x)), (-1.0, 1.0));
            assert_eq!((sigmoid(-x), sigmoid(x)), (0.0, 1.0));
        }
        assert_eq!((exp(0.0), tanh(0.0), silu(-1e4)), (1.0, 0.0, 0.0));
        assert_eq!(exp(88.7), 88.7f32.exp());
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
    }
}
