//! Logits and tokens as one number that grows as tokens become less likely, and how the first of them are found.

use super::super::weights::Weights;

/// Smaller is likelier; of equal logits the lower token is smaller.
pub(in crate::sampling) fn key(logit: f32, token: u32) -> u64 {
    // The two zeros are equal.
    let bits = (logit + 0.0).to_bits();
    let rising = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!rising) << 32 | u64::from(token)
}

pub(in crate::sampling) fn token_of(key: u64) -> u32 {
    key as u32
}

pub(in crate::sampling) fn logit_of(key: u64) -> f32 {
    let rising = !((key >> 32) as u32);
    f32::from_bits(if rising >> 31 == 1 { rising & !(1 << 31) } else { !rising })
}

/// What tokens of these keys weigh together.
pub(in crate::sampling) fn weight_of(keys: &[u64], weights: Weights) -> u128 {
    keys.iter().map(|&key| u128::from(weights.of(logit_of(key)))).sum()
}

/// What a token is drawn from: those whose keys are at most `last`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(in crate::sampling) struct Kept {
    pub last: u64,
    pub weight: u128,
}

/// The fewest first keys that weigh enough together. Enough is at most the weight of all.
pub(in crate::sampling) fn nucleus(keys: &mut [u64], enough: u128, weights: Weights) -> Kept {
    const FEW: usize = 32;
    // Keys before `start` are needed, and weigh `before`; keys from `end` on are not.
    let (mut start, mut end, mut before) = (0, keys.len(), 0);
    while end - start > FEW {
        let half = (end - start) / 2;
        keys[start..end].select_nth_unstable(half);
        let weight = weight_of(&keys[start..start + half], weights);
        match before + weight >= enough {
            true => end = start + half,
            false => (start, before) = (start + half, before + weight),
        }
    }
    keys[start..end].sort_unstable();
    for &key in &keys[start..end] {
        before += u128::from(weights.of(logit_of(key)));
        if before >= enough {
            return Kept { last: key, weight: before };
        }
    }
    unreachable!("all keys weigh {before}, less than {enough}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_tokens_are() {
        let logits = [f32::MAX, 1e4, 1.5, 1.0, 1e-40, 0.0, -1e-40, -1.0, -1e4, f32::MIN, f32::NEG_INFINITY];
        for (i, &a) in logits.iter().enumerate() {
            assert!(logit_of(key(a, 5)) == a && token_of(key(a, 5)) == 5);
            assert!(key(a, 5) < key(a, 6));
            logits[i + 1..].iter().for_each(|&b| assert!(key(a, u32::MAX) < key(b, 0), "{a} before {b}"));
        }
        assert_eq!(key(0.0, 3), key(-0.0, 3));
    }

    #[test]
    fn a_nucleus_is_the_first_that_weigh_enough() {
        for n in [1, 2, 31, 32, 33, 70, 500] {
            for temperature in [0.5, 5.0, 1e6] {
                let weights = Weights::new(9.0, temperature);
                let keys: Vec<u64> = (0..n).map(|i| key(9.0 - (i * 37 % 101) as f32 * 0.1, i)).collect();
                let mut sorted = keys.clone();
                sorted.sort_unstable();
                let all = weight_of(&keys, weights);
                for enough in [1, all / 3, all / 2 + 1, all - 1, all] {
                    let needed = (1..=keys.len()).find(|&i| weight_of(&sorted[..i], weights) >= enough);
                    let needed = needed.expect("all weigh enough");
                    let weight = weight_of(&sorted[..needed], weights);
                    let want = Kept { last: sorted[needed - 1], weight };
                    assert_eq!(
                        nucleus(&mut keys.clone(), enough, weights),
                        want,
                        "{n} {temperature} {enough}"
                    );
                }
            }
        }
    }
}
