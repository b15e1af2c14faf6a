//! The passes over a whole vocabulary.

use super::super::weights::{BUCKETS, Weights};
use crate::cpu::{Isa, Kernel, WIDTH};

/// Tokens whose greatest logit and whose weight are kept together.
pub(super) const BLOCK: usize = 128;

const VECTORS: usize = BLOCK / WIDTH;

/// Finds the greatest logit of each block. Where one is no number or +∞, the first of the `maxes` becomes no number; what is
/// less than any finite number counts as the least of them.
pub(super) struct Scan<'a> {
    pub logits: &'a [f32],
    pub maxes: &'a mut [f32],
}

impl Kernel for Scan<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (lowest, zero) = (isa.splat(f32::MIN), isa.zero());
        // Finite numbers times zero add nothing, others make the sum no number. Four sums wait less for one another.
        let mut taints = [zero; 4];
        let (whole, rest) = self.logits.as_chunks::<BLOCK>();
        for (block, max) in whole.iter().zip(&mut *self.maxes) {
            let (vectors, _) = block.as_chunks::<WIDTH>();
            let mut greatest = lowest;
            for i in 0..VECTORS {
                // Of two, the second is taken where one is no number: so it is kept here and passed over below.
                let values = isa.max(lowest, isa.load(&vectors[i]));
                taints[i % 4] = isa.fma(values, zero, taints[i % 4]);
                greatest = isa.max(values, greatest);
            }
            *max = isa.largest(greatest);
        }
        if !rest.is_empty() {
            let mut greatest = lowest;
            for chunk in rest.chunks(WIDTH) {
                let mut values = [f32::MIN; WIDTH];
                values[..chunk.len()].copy_from_slice(chunk);
                let values = isa.max(lowest, isa.load(&values));
                taints[0] = isa.fma(values, zero, taints[0]);
                greatest = isa.max(values, greatest);
            }
            self.maxes[whole.len()] = isa.largest(greatest);
        }
        let taint = isa.add(isa.add(taints[0], taints[1]), isa.add(taints[2], taints[3]));
        if isa.sum(taint) != 0.0
            && let Some(first) = self.maxes.first_mut()
        {
            *first = f32::NAN;
        }
    }
}

/// The greatest of all blocks; `None` where there are none or one is no number.
pub(super) fn greatest(maxes: &[f32]) -> Option<f32> {
    let mut all = (!maxes.is_empty()).then_some(f32::MIN)?;
    let mut are_numbers = true;
    for &max in maxes {
        are_numbers &= !max.is_nan();
        all = if max > all { max } else { all };
    }
    are_numbers.then_some(all)
}

/// Adds up the weights of the tokens of each block whose logits reach the floor.
pub(super) struct Weigh<'a> {
    pub logits: &'a [f32],
    pub maxes: &'a [f32],
    pub weights: Weights,
    pub floor: f64,
    pub sums: &'a mut [u64],
}

impl Kernel for Weigh<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        for ((block, &max), sum) in self.logits.chunks(BLOCK).zip(self.maxes).zip(self.sums) {
            *sum = weight_of_block(block, max, self.weights, self.floor);
        }
    }
}

/// What the tokens of a block whose logits reach the floor weigh together.
#[inline(always)]
fn weight_of_block(block: &[f32], max: f32, weights: Weights, floor: f64) -> u64 {
    let mut sum = 0u64;
    if weights.vanish(max) || f64::from(max) < floor {
        return sum;
    }
    for &logit in block {
        let weight = weights.of(logit);
        sum = sum.wrapping_add(if f64::from(logit) >= floor { weight } else { 0 });
    }
    sum
}

/// What all tokens whose logits reach the floor weigh together.
pub(super) struct Total<'a> {
    pub logits: &'a [f32],
    pub maxes: &'a [f32],
    pub weights: Weights,
    pub floor: f32,
}

impl Kernel for Total<'_> {
    type Out = u128;

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) -> u128 {
        let mut total = 0;
        for (block, &max) in self.logits.chunks(BLOCK).zip(self.maxes) {
            total += u128::from(weight_of_block(block, max, self.weights, f64::from(self.floor)));
        }
        total
    }
}

/// Goes through the blocks until the weights of tokens that come before this one in the order of likelihood, or are it, exceed
/// the target. Tells the block and what is left of the target there.
pub(super) struct Find<'a> {
    pub logits: &'a [f32],
    pub maxes: &'a [f32],
    pub weights: Weights,
    pub last_logit: f32,
    pub last_token: u32,
    pub target: u128,
}

impl Kernel for Find<'_> {
    type Out = Option<(usize, u64)>;

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) -> Option<(usize, u64)> {
        let mut left = self.target;
        for (at, (block, &max)) in self.logits.chunks(BLOCK).zip(self.maxes).enumerate() {
            let weigh = |block: &[f32], floor: f32| {
                u128::from(weight_of_block(block, max, self.weights, f64::from(floor)))
            };
            // Of tokens as likely as the last one those up to it count.
            let tied = (self.last_token as usize + 1).saturating_sub(at * BLOCK).min(block.len());
            let (before, after) = block.split_at(tied);
            let weight = weigh(before, self.last_logit) + weigh(after, self.last_logit.next_up());
            match left.checked_sub(weight) {
                Some(rest) => left = rest,
                None => return Some((at, left as u64)),
            }
        }
        None
    }
}

/// Adds the weights of all tokens to those of their buckets.
pub(super) struct Spread<'a> {
    pub logits: &'a [f32],
    pub maxes: &'a [f32],
    pub weights: Weights,
    pub buckets: &'a mut [u64],
}

impl Kernel for Spread<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        let buckets: &mut [u64; BUCKETS] = self.buckets.try_into().expect("there are as many buckets");
        for (block, &max) in self.logits.chunks(BLOCK).zip(self.maxes) {
            if self.weights.vanish(max) {
                continue;
            }
            // First what vector code can do, then what it cannot.
            let (mut parts, mut places) = ([0; BLOCK], [0; BLOCK]);
            for ((part, place), &logit) in parts.iter_mut().zip(&mut places).zip(block) {
                *part = self.weights.of(logit);
                *place = self.weights.bucket(logit);
            }
            for (&part, &place) in parts.iter().zip(&places).take(block.len()) {
                buckets[place as usize % BUCKETS] += part;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Level;

    fn logits(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919) % 1009) as f32 * 0.05 - 30.0).collect()
    }

    #[test]
    fn every_level_finds_the_same() {
        for n in [0, 1, 15, 16, 100, 128, 129, 1000, 5000] {
            let logits = logits(n);
            let blocks = n.div_ceil(BLOCK);
            let want: Vec<f32> =
                logits.chunks(BLOCK).map(|b| b.iter().copied().fold(f32::MIN, f32::max)).collect();
            for level in Level::available() {
                let mut maxes = vec![7.0; blocks];
                level.run(Scan { logits: &logits, maxes: &mut maxes });
                assert_eq!(maxes, want, "{n} at {}", level.name());
                let Some(max) = greatest(&maxes) else { continue };
                for (temperature, floor) in
                    [(1.0, f64::NEG_INFINITY), (0.3, f64::from(max) - 4.0), (50.0, -20.0)]
                {
                    let weights = Weights::new(max, temperature);
                    let mut sums = vec![1; blocks];
                    level.run(Weigh { logits: &logits, maxes: &maxes, weights, floor, sums: &mut sums });
                    for (block, sum) in logits.chunks(BLOCK).zip(sums) {
                        let kept = block.iter().filter(|&&l| f64::from(l) >= floor);
                        assert_eq!(sum, kept.map(|&l| weights.of(l)).sum::<u64>(), "{n} at {}", level.name());
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_found_wherever_it_is() {
        for level in Level::available() {
            for bad in [f32::NAN, f32::INFINITY, -f32::NAN] {
                for at in [0, 1, 17, 127, 128, 255, 256, 300, 333] {
                    let mut logits = logits(334);
                    logits[5] = f32::NEG_INFINITY;
                    let mut maxes = vec![0.0; 3];
                    level.run(Scan { logits: &logits, maxes: &mut maxes });
                    assert!(greatest(&maxes).is_some());
                    logits[at] = bad;
                    level.run(Scan { logits: &logits, maxes: &mut maxes });
                    assert_eq!(greatest(&maxes), None, "{bad} at {at}, {}", level.name());
                }
            }
        }
    }
}
