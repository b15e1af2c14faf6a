//! How likely tokens are beside the likeliest, as whole numbers. Sums of whole numbers are exact: they depend neither on the
//! order in which they are made nor on how many threads make them, and every cut through them falls on the same token.

use super::random;

/// The weight of the likeliest token. What is less likely by more than 2^45 weighs nothing: all such tokens of a vocabulary
/// of 2^18 together would be drawn less than once in 10^7 times.
pub(super) const LOG2_UNIT: i64 = 44;
const UNIT: f64 = (1u64 << LOG2_UNIT) as f64;

/// 1.5 · 2^52: adding it leaves the nearest whole number in the lowest bits.
const NO_FRACTION: f64 = 6_755_399_441_055_744.0;

/// Powers of two below this weigh nothing, and are not looked at closer.
const LOWEST: f64 = -60.0;

/// Buckets into which tokens are sorted by how much less likely than the likeliest they are, in powers of two; all that
/// weigh anything lie in the first 46 · 16.
pub(super) const BUCKETS: usize = 1024;
const BUCKETS_PER_POWER: f64 = 16.0;

/// Coefficients of r^0, r^1, … in 2^r: for r in -0.5..=0.5 the rest is less than a tenth of a unit.
pub(super) const EXP2: [f64; 12] = {
    let mut coefficients = [1.0; 12];
    let mut k = 1;
    while k < coefficients.len() {
        coefficients[k] = coefficients[k - 1] * std::f64::consts::LN_2 / k as f64;
        k += 1;
    }
    coefficients
};

/// Weighs tokens by their logits: e^((logit − max) / temperature), of 2^44 parts.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    max: f64,
    scale: f64,
}

impl Weights {
    /// Beside the greatest logit; the temperature is more than 0.
    pub fn new(max: f32, temperature: f32) -> Weights {
        Weights { max: f64::from(max), scale: std::f64::consts::LOG2_E / f64::from(temperature) }
    }

    /// What differences of logits are multiplied with to be powers of two.
    pub fn scale(self) -> f64 {
        self.scale
    }

    /// The weight of a token whose logit is at most the greatest. It is made of plain products and sums, none of them
    /// fused, so that vector code at any level gives the same bits.
    #[inline(always)]
    pub fn of(self, logit: f32) -> u64 {
        let x = (f64::from(logit) - self.max) * self.scale;
        let x = if x > LOWEST { x } else { LOWEST };
        let shifted = x + NO_FRACTION;
        let r = x - (shifted - NO_FRACTION);
        let mut p = EXP2[11];
        p = p * r + EXP2[10];
        p = p * r + EXP2[9];
        p = p * r + EXP2[8];
        p = p * r + EXP2[7];
        p = p * r + EXP2[6];
        p = p * r + EXP2[5];
        p = p * r + EXP2[4];
        p = p * r + EXP2[3];
        p = p * r + EXP2[2];
        p = p * r + EXP2[1];
        p = p * r + EXP2[0];
        let power = (shifted.to_bits() as i64).wrapping_sub(NO_FRACTION.to_bits() as i64);
        let parts = f64::from_bits((power.wrapping_add(1023 + LOG2_UNIT) as u64) << 52);
        (p * parts + NO_FRACTION).to_bits().wrapping_sub(NO_FRACTION.to_bits())
    }

    /// Whether tokens of this logit and of all smaller ones weigh nothing, with room for what is rounded.
    pub fn vanish(self, logit: f32) -> bool {
        (f64::from(logit) - self.max) * self.scale < -50.0
    }

    /// Which of [`BUCKETS`] a token belongs to. Likelier tokens belong to the same or an earlier one, equal ones to the same.
    #[inline(always)]
    pub fn bucket(self, logit: f32) -> u32 {
        const LAST: f64 = (BUCKETS - 1) as f64;
        let place = (self.max - f64::from(logit)) * self.scale * BUCKETS_PER_POWER;
        (if place < LAST { place } else { LAST }) as u32
    }

    /// Logits between which all tokens of a bucket lie, and perhaps some others.
    pub fn around(self, bucket: u32) -> (f32, f32) {
        let logit = |place: f64| (self.max - place / BUCKETS_PER_POWER / self.scale) as f32;
        let lowest = match bucket as usize == BUCKETS - 1 {
            true => f32::NEG_INFINITY,
            false => logit(f64::from(bucket) + 1.01).next_down(),
        };
        (lowest, logit(f64::from(bucket) - 0.01).next_up())
    }

    /// The logarithm of the sum of e^logit over tokens that weigh this much together, at temperature 1.
    pub fn log_sum(self, total: u128) -> f64 {
        self.max + (total as f64 / UNIT).ln()
    }
}

/// What a draw looks for: the token at which the sum of weights exceeds this. It is less than the total.
pub(super) fn target(total: u128, seed: u64, position: usize) -> u128 {
    (total * u128::from(random::bits(seed, position as u64))) >> random::BITS
}

/// The weight that tokens must have together to be `share` (less than 1) of the total.
pub(super) fn portion(total: u128, share: f32) -> u128 {
    (total as f64 * f64::from(share)).ceil() as u128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_powers_to_a_unit() {
        for temperature in [0.1, 0.8, 1.0, 3.0] {
            let weights = Weights::new(7.5, temperature);
            for i in 0..40_000 {
                let logit = 7.5 - i as f32 * 0.0017;
                let want = ((f64::from(logit) - 7.5) / f64::from(temperature)).exp() * UNIT;
                let have = weights.of(logit) as f64;
                // Half a unit for rounding; the rest is of the polynomial and of the product with the scale.
                assert!(
                    (have - want).abs() <= 0.6 + 2e-14 * want,
                    "{logit} at {temperature}: {have}, not {want}"
                );
                assert!(!weights.vanish(logit) || have == 0.0);
            }
        }
    }

    #[test]
    fn extremes_weigh_all_or_nothing() {
        for temperature in [1e-45, f32::MIN_POSITIVE, 1.0, f32::MAX] {
            for max in [f32::MIN, -1e4, -0.0, 1e-40, 1e4, f32::MAX] {
                let weights = Weights::new(max, temperature);
                assert_eq!(weights.of(max), 1 << LOG2_UNIT);
                assert_eq!(weights.of(f32::NEG_INFINITY), 0);
                assert!(weights.vanish(f32::NEG_INFINITY) && !weights.vanish(max));
            }
        }
        assert_eq!(Weights::new(1.0, f32::MIN_POSITIVE).of(1.0f32.next_down()), 0);
        assert_eq!(Weights::new(1e4, f32::MAX).of(-1e4), 1 << LOG2_UNIT);
    }

    #[test]
    fn buckets_follow_the_order_and_are_found_again() {
        for (max, temperature) in
            [(7.5, 0.8), (0.0, 1.0), (1e4, 2.0), (-3e38, 1e6), (2.0, 1e-30), (5.0, f32::MAX)]
        {
            let weights = Weights::new(max, temperature);
            let mut before = 0;
            for i in 0..3000 {
                let logit = max - (i as f32 * 0.0131 * temperature).min(f32::MAX);
                let bucket = weights.bucket(logit);
                let (low, high) = weights.around(bucket);
                assert!(
                    before <= bucket && low <= logit && logit <= high,
                    "{logit} of {max} at {temperature}"
                );
                before = bucket;
            }
            assert_eq!((weights.bucket(max), weights.bucket(f32::NEG_INFINITY)), (0, BUCKETS as u32 - 1));
            assert_eq!(weights.around(BUCKETS as u32 - 1).0, f32::NEG_INFINITY);
        }
    }

    #[test]
    fn a_target_lies_below_its_total_and_a_portion_within() {
        for total in [1, 5, 1 << 44, (1 << 62) + 12345, u128::from(u64::MAX) << 8] {
            for seed in 0..2000 {
                assert!(target(total, seed, 3) < total);
            }
            for share in [f32::MIN_POSITIVE, 0.5, 0.95, 1.0f32.next_down()] {
                let part = portion(total, share);
                assert!((1..=total).contains(&part), "{share} of {total} is {part}");
            }
        }
    }
}
