//! The memory in which one row is worked on, and what the lane that leads does there when the passes over the whole
//! vocabulary are over.

use super::super::weights::{BUCKETS, Weights, portion, target};
use super::super::{Logprobs, MAX_LOGPROBS, SampleRow, Sampling, TokenLogprob, finite, kept_finite};
use super::keys::{Kept, key, logit_of, nucleus, token_of, weight_of};
use super::scan::{BLOCK, Find, Spread, Total};
use crate::backend::BackendError;
use crate::cpu::{Level, Shared};

pub(super) struct Desk {
    /// Logits with bias and penalties.
    pub changed: Shared<f32>,
    /// The greatest logit of each block.
    pub maxes: Shared<f32>,
    /// The weight of each block.
    pub sums: Shared<u64>,
    /// A word for each token, first for counting those there were, then for those that may be chosen.
    words: Shared<u64>,
    /// The weight of each bucket.
    buckets: Shared<u64>,
}

impl Desk {
    pub fn new(vocab: usize) -> Result<Desk, BackendError> {
        let (blocks, what) = (vocab.div_ceil(BLOCK), "choosing tokens");
        Ok(Desk {
            changed: Shared::zeroed(vocab, what)?,
            maxes: Shared::zeroed(blocks, what)?,
            sums: Shared::zeroed(blocks, what)?,
            words: Shared::zeroed(vocab, what)?,
            buckets: Shared::zeroed(BUCKETS, what)?,
        })
    }

    /// The memory of one for so many tokens.
    pub fn bytes_for(vocab: usize) -> usize {
        let blocks = vocab.div_ceil(BLOCK);
        let (floats, words) = (vocab.saturating_add(blocks), vocab.saturating_add(blocks + BUCKETS));
        floats.saturating_mul(size_of::<f32>()).saturating_add(words.saturating_mul(size_of::<u64>()))
    }

    pub fn bytes(&self) -> usize {
        let words = [&self.sums, &self.words, &self.buckets].map(Shared::bytes);
        self.changed.bytes() + self.maxes.bytes() + words.iter().sum::<usize>()
    }

    /// Puts bias and penalties on the first `vocab` logits that were copied here: a walk over the tokens there were, not over
    /// those there are.
    ///
    /// # Safety
    /// Nobody else uses the desk meanwhile.
    pub unsafe fn change(&self, vocab: usize, row: &SampleRow) {
        /// A token that was penalized.
        const DONE: u64 = u64::MAX;
        // SAFETY: the caller's promise.
        let (logits, counts) = unsafe { (self.changed.slice_mut(0..vocab), self.words.slice_mut(0..vocab)) };
        let sampling = row.sampling;
        for &(token, bias) in &sampling.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = kept_finite(*logit, f64::from(*logit) + f64::from(bias));
            }
        }
        if !sampling.penalizes() {
            return;
        }
        let prompt = if sampling.repeat_penalty == 1.0 { &[] } else { row.prompt };
        let inside = |tokens| inside(tokens, vocab);
        inside(prompt).chain(inside(row.output)).for_each(|token| counts[token] = 0);
        inside(row.output).for_each(|token| counts[token] += 1);
        for token in inside(prompt).chain(inside(row.output)) {
            let count = std::mem::replace(&mut counts[token], DONE);
            if count != DONE {
                logits[token] = sampling.penalized(logits[token], count);
            }
        }
    }

    /// # Safety
    /// While the reading lives nobody else writes to the desk, and nobody reads its words and buckets.
    pub unsafe fn reading<'a>(&'a self, level: Level, logits: &'a [f32], max: f32) -> Reading<'a> {
        let blocks = logits.len().div_ceil(BLOCK);
        // SAFETY: the caller's promise.
        unsafe {
            Reading {
                level,
                logits,
                max,
                maxes: self.maxes.slice(0..blocks),
                sums: self.sums.slice(0..blocks),
                keys: self.words.slice_mut(0..logits.len()),
                buckets: self.buckets.slice_mut(0..BUCKETS),
            }
        }
    }
}

/// A row of which the greatest logits and, where they are needed, the weights of all blocks are known.
pub(super) struct Reading<'a> {
    level: Level,
    logits: &'a [f32],
    max: f32,
    maxes: &'a [f32],
    sums: &'a [u64],
    keys: &'a mut [u64],
    buckets: &'a mut [u64],
}

impl Reading<'_> {
    pub fn choose(mut self, row: &SampleRow) -> u32 {
        let sampling = row.sampling;
        if sampling.temperature == 0.0 {
            return self.greatest();
        }
        let weights = Weights::new(self.max, sampling.temperature);
        let floor = least_float(sampling.floor(self.max));
        let is_limited = sampling.limits_count(self.logits.len());
        if !is_limited && sampling.top_p == 1.0 {
            let kept = Kept { last: key(floor, u32::MAX), weight: self.weight() };
            return self.draw_from_all(&kept, weights, target(kept.weight, sampling.seed, row.position));
        }
        let mut kept = match is_limited {
            true => self.most_likely(sampling, weights),
            false => self.nucleus(portion(self.weight(), sampling.top_p), weights),
        };
        if key(floor, u32::MAX) < kept.last {
            let (logits, maxes) = (self.logits, self.maxes);
            let weight = self.level.run(Total { logits, maxes, weights, floor });
            kept = Kept { last: key(floor, u32::MAX), weight };
        }
        self.draw(&kept, weights, target(kept.weight, sampling.seed, row.position))
    }

    /// What top-k and then top-p leave.
    fn most_likely(&mut self, sampling: &Sampling, weights: Weights) -> Kept {
        let count = self.likeliest(sampling.top_k);
        let keys = &mut self.keys[..count];
        let weight = weight_of(keys, weights);
        match sampling.top_p < 1.0 {
            true => nucleus(keys, portion(weight, sampling.top_p), weights),
            false => Kept { last: keys.iter().copied().max().unwrap_or(0), weight },
        }
    }

    /// The fewest likeliest of all tokens that weigh enough.
    fn nucleus(&mut self, enough: u128, weights: Weights) -> Kept {
        // Mostly a few will do.
        let count = self.collect(64);
        if weight_of(&self.keys[..count], weights) >= enough {
            return nucleus(&mut self.keys[..count], enough, weights);
        }
        self.buckets.fill(0);
        let (logits, maxes) = (self.logits, self.maxes);
        self.level.run(Spread { logits, maxes, weights, buckets: self.buckets });
        let mut before = 0;
        for (bucket, &weight) in (0..).zip(&*self.buckets) {
            let weight = u128::from(weight);
            if before + weight >= enough {
                let count = self.collect_bucket(bucket, weights);
                let kept = nucleus(&mut self.keys[..count], enough - before, weights);
                return Kept { weight: before + kept.weight, ..kept };
            }
            before += weight;
        }
        unreachable!("all tokens weigh {before}, less than {enough}")
    }

    /// The lowest token of those with the greatest logit.
    fn greatest(&self) -> u32 {
        let block =
            self.maxes.iter().position(|&max| max == self.max).expect("it is the greatest of a block");
        // Blocks without a finite number count as the least of them, so the token may lie in a later one.
        let first = block * BLOCK;
        let at = self.logits[first..].iter().position(|&logit| logit == self.max).expect("it is of a token");
        (first + at) as u32
    }

    /// The weight of all tokens.
    fn weight(&self) -> u128 {
        self.sums.iter().map(|&weight| u128::from(weight)).sum()
    }

    /// Brings the keys of the `n` likeliest tokens to the front, in any order; returns how many they are. Tokens that are
    /// not possible at all may be missing.
    fn likeliest(&mut self, n: usize) -> usize {
        let count = self.collect(n);
        if count > n {
            self.keys[..count].select_nth_unstable(n);
        }
        count.min(n)
    }

    /// Brings the keys of at least the `n` likeliest tokens to the front; returns how many they are. The greatest of `n`
    /// blocks are so many tokens, so no token less likely than all of them is among the likeliest.
    fn collect(&mut self, n: usize) -> usize {
        let least = if n < self.maxes.len() {
            let blocks = &mut self.keys[..self.maxes.len()];
            blocks.iter_mut().zip(self.maxes).for_each(|(to, &max)| *to = key(max, 0));
            logit_of(*blocks.select_nth_unstable(n - 1).1)
        } else {
            f32::NEG_INFINITY
        };
        let mut count = 0;
        for (block, &max) in self.maxes.iter().enumerate() {
            if max < least {
                continue;
            }
            for (token, &logit) in of_block(self.logits, block) {
                // Written in any case and kept if it counts: the order of logits cannot be foreseen.
                self.keys[count] = key(logit, token);
                count += usize::from(logit >= least);
            }
        }
        count
    }

    /// Brings the keys of the tokens of a bucket to the front; returns how many they are.
    fn collect_bucket(&mut self, bucket: u32, weights: Weights) -> usize {
        let (low, high) = weights.around(bucket);
        let mut count = 0;
        for (block, &max) in self.maxes.iter().enumerate() {
            if max < low {
                continue;
            }
            for (token, &logit) in of_block(self.logits, block) {
                if (low..=high).contains(&logit) && weights.bucket(logit) == bucket {
                    self.keys[count] = key(logit, token);
                    count += 1;
                }
            }
        }
        count
    }

    /// The token at which the weights of those kept, in the order of their numbers, exceed the target.
    fn draw(&self, kept: &Kept, weights: Weights, target: u128) -> u32 {
        let (last_logit, last_token) = (logit_of(kept.last), token_of(kept.last));
        let (logits, maxes) = (self.logits, self.maxes);
        let found = self.level.run(Find { logits, maxes, weights, last_logit, last_token, target });
        let (block, left) = found.expect("the target is less than the weight of what is kept");
        self.draw_from(block, kept, weights, left)
    }

    /// The same where the weights of the blocks are of just those that are kept.
    fn draw_from_all(&self, kept: &Kept, weights: Weights, mut target: u128) -> u32 {
        for (block, &weight) in self.sums.iter().enumerate() {
            match target.checked_sub(u128::from(weight)) {
                Some(rest) => target = rest,
                None => return self.draw_from(block, kept, weights, target as u64),
            }
        }
        unreachable!("the target is less than the weight of all")
    }

    /// The same in a block.
    fn draw_from(&self, block: usize, kept: &Kept, weights: Weights, mut target: u64) -> u32 {
        for (token, &logit) in of_block(self.logits, block) {
            if key(logit, token) > kept.last {
                continue;
            }
            match target.checked_sub(weights.of(logit)) {
                Some(rest) => target = rest,
                None => return token,
            }
        }
        unreachable!("the target is less than the weight of what is kept of the block")
    }

    /// Of the token and of the `n` likeliest; the blocks are weighed at temperature 1.
    pub fn logprobs(mut self, token: u32, n: u8) -> Logprobs {
        let log_sum = Weights::new(self.max, 1.0).log_sum(self.weight());
        let logprob = |logit: f32| finite(f64::from(logit) - log_sum);
        let count = match usize::from(n).min(MAX_LOGPROBS) {
            0 => 0,
            n => self.likeliest(n),
        };
        let top = &mut self.keys[..count];
        top.sort_unstable();
        let possible = top.iter().filter(|&&key| logit_of(key) > f32::NEG_INFINITY);
        let top = possible.map(|&k| TokenLogprob { token: token_of(k), logprob: logprob(logit_of(k)) });
        // One that is given may be none of those that are there: it could not be chosen.
        Logprobs::new(logprob(self.logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY)), top)
    }
}

/// The tokens that a vocabulary has.
fn inside(tokens: &[u32], vocab: usize) -> impl Iterator<Item = usize> {
    tokens.iter().map(|&token| token as usize).filter(move |&token| token < vocab)
}

/// The tokens of a block with their logits.
fn of_block(logits: &[f32], block: usize) -> impl Iterator<Item = (u32, &f32)> {
    let first = block * BLOCK;
    (first as u32..).zip(&logits[first..logits.len().min(first + BLOCK)])
}

/// The least float that is at least this.
fn least_float(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) < value { near.next_up() } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_become_the_next_float() {
        for value in
            [0.0, 1.0, -1.0, 1e-50, -1e-50, 0.1, -0.1, 1e39, -1e39, f64::from(f32::MAX), -3.3e38, 1e-40]
        {
            let float = least_float(value);
            assert!(f64::from(float) >= value && f64::from(float.next_down()) < value, "{value}: {float}");
        }
        assert_eq!(least_float(f64::NEG_INFINITY), f32::NEG_INFINITY);
    }
}
