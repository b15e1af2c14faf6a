//! From logits to a token: penalties → temperature → top-k → top-p → min-p → draw, all in f64.

mod random;

use std::cmp::Ordering;

use crate::error::EngineError;
pub use random::uniform;

/// How a token is chosen. The default is greedy: the likeliest token, no penalties.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest likeliest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the answer; 1 changes
    /// nothing.
    pub repeat_penalty: f32,
    /// Taken from the logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens in the answer for every time they are in it.
    pub frequency_penalty: f32,
    /// Equal seeds give equal tokens, alone or in a batch.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Refuses values that mean nothing, by name.
    pub fn check(&self) -> Result<(), EngineError> {
        let finite = |v: f32| v.is_finite();
        let checks: [(&str, f32, bool, &str); 6] = [
            (
                "temperature",
                self.temperature,
                finite(self.temperature) && self.temperature >= 0.0,
                "0 or more",
            ),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "more than 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1"),
            (
                "repeat_penalty",
                self.repeat_penalty,
                finite(self.repeat_penalty) && self.repeat_penalty > 0.0,
                "more than 0",
            ),
            ("presence_penalty", self.presence_penalty, finite(self.presence_penalty), "a number"),
            ("frequency_penalty", self.frequency_penalty, finite(self.frequency_penalty), "a number"),
        ];
        match checks.into_iter().find(|&(_, _, fine, _)| !fine) {
            Some((name, value, _, must)) => Err(EngineError::Sampling { name, value, must }),
            None => Ok(()),
        }
    }

    fn penalizes(&self) -> bool {
        self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// A token and its probability, not yet divided by the sum of all.
#[derive(Clone, Copy)]
struct Candidate {
    weight: f64,
    token: u32,
}

impl Candidate {
    /// Likelier first, among equals the lower token: a total order, so every selection has one outcome.
    fn order(&self, other: &Candidate) -> Ordering {
        other.weight.total_cmp(&self.weight).then(self.token.cmp(&other.token))
    }
}

/// The memory in which tokens are chosen, kept from one to the next.
#[derive(Default)]
pub struct Sampler {
    logits: Vec<f64>,
    counts: Vec<u32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Chooses the token that follows `prompt` and `output`. `sampling` must have passed its check.
    pub fn sample(
        &mut self,
        sampling: &Sampling,
        logits: &[f32],
        prompt: &[u32],
        output: &[u32],
    ) -> Result<u32, EngineError> {
        let position = prompt.len() + output.len();
        let not_numbers = EngineError::NotNumbers { position };
        if sampling.temperature == 0.0 && !sampling.penalizes() {
            return argmax(logits).ok_or(not_numbers);
        }
        self.logits.clear();
        self.logits.extend(logits.iter().map(|&l| f64::from(l)));
        self.penalize(sampling, prompt, output);
        let Some(best) = argmax(&self.logits) else {
            return Err(not_numbers);
        };
        if sampling.temperature == 0.0 {
            return Ok(best);
        }
        self.weigh(f64::from(sampling.temperature), self.logits[best as usize]);
        self.filter(sampling);
        Ok(self.draw(uniform(sampling.seed, position as u64)))
    }

    fn penalize(&mut self, sampling: &Sampling, prompt: &[u32], output: &[u32]) {
        self.counts.resize(self.logits.len(), 0);
        if sampling.repeat_penalty != 1.0 {
            let penalty = f64::from(sampling.repeat_penalty);
            for &token in prompt.iter().chain(output) {
                let Some(count @ 0) = self.counts.get_mut(token as usize) else { continue };
                *count = 1;
                let logit = &mut self.logits[token as usize];
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
            self.forget(prompt);
            self.forget(output);
        }
        let (presence, frequency) = (sampling.presence_penalty, sampling.frequency_penalty);
        if presence != 0.0 || frequency != 0.0 {
            for &token in output {
                let Some(count) = self.counts.get_mut(token as usize) else { continue };
                self.logits[token as usize] -= f64::from(frequency);
                if *count == 0 {
                    self.logits[token as usize] -= f64::from(presence);
                }
                *count += 1;
            }
            self.forget(output);
        }
    }

    fn forget(&mut self, tokens: &[u32]) {
        for &token in tokens {
            if let Some(count) = self.counts.get_mut(token as usize) {
                *count = 0;
            }
        }
    }

    /// Fills the candidates, in the order of their ids; the likeliest weighs 1.
    fn weigh(&mut self, temperature: f64, max: f64) {
        self.candidates.clear();
        for (token, &logit) in self.logits.iter().enumerate() {
            let weight = ((logit - max) / temperature).exp();
            if weight > 0.0 {
                self.candidates.push(Candidate { weight, token: token as u32 });
            }
        }
    }

    fn filter(&mut self, sampling: &Sampling) {
        if sampling.top_k > 0 && sampling.top_k < self.candidates.len() {
            sort_front(&mut self.candidates, 0, sampling.top_k);
            self.candidates.truncate(sampling.top_k);
        }
        if sampling.top_p < 1.0 {
            let kept = nucleus(&mut self.candidates, f64::from(sampling.top_p));
            self.candidates.truncate(kept);
        }
        let least = f64::from(sampling.min_p);
        self.candidates.retain(|c| c.weight >= least);
    }

    fn draw(&self, uniform: f64) -> u32 {
        let total: f64 = self.candidates.iter().map(|c| c.weight).sum();
        let target = uniform * total;
        let mut sum = 0.0;
        let chosen = self.candidates.iter().find(|c| {
            sum += c.weight;
            sum > target
        });
        // Sums are rounded, so the last candidate may end a hair below the total.
        chosen.or(self.candidates.last()).expect("the likeliest token passes every filter").token
    }
}

/// Brings the first `n` candidates of the order to the front, in order; the first `sorted` are there already.
fn sort_front(candidates: &mut [Candidate], sorted: usize, n: usize) {
    let rest = &mut candidates[sorted..];
    let n = n - sorted;
    if n < rest.len() {
        rest.select_nth_unstable_by(n, Candidate::order);
    }
    rest[..n].sort_unstable_by(Candidate::order);
}

/// How many of the likeliest candidates reach `top_p` of the sum of all; they are in order then. Most
/// vocabularies need a few dozen of many thousands, so the front is sorted piece by piece.
fn nucleus(candidates: &mut [Candidate], top_p: f64) -> usize {
    let target = top_p * candidates.iter().map(|c| c.weight).sum::<f64>();
    let (mut sorted, mut sum) = (0, 0.0);
    while sorted < candidates.len() {
        let n = (sorted * 4).max(64).min(candidates.len());
        sort_front(candidates, sorted, n);
        for (i, candidate) in candidates[sorted..n].iter().enumerate() {
            sum += candidate.weight;
            if sum >= target {
                return sorted + i + 1;
            }
        }
        sorted = n;
    }
    candidates.len()
}

/// Values among which the greatest is found without a branch for each.
const ARGMAX_BLOCK: usize = 64;

/// The index of the greatest value, the lowest of equals; `None` where a value is no number or +∞, or all are
/// −∞.
pub(crate) fn argmax<T: Copy + PartialOrd + From<f32>>(values: &[T]) -> Option<u32> {
    let (lowest, infinity) = (T::from(f32::NEG_INFINITY), T::from(f32::INFINITY));
    let (mut first, mut best) = (0, lowest);
    for (block, values) in values.chunks(ARGMAX_BLOCK).enumerate() {
        let (mut max, mut finite) = (lowest, true);
        for &value in values {
            finite &= value < infinity;
            max = if value > max { value } else { max };
        }
        if !finite {
            return None;
        }
        if max > best {
            (first, best) = (block * ARGMAX_BLOCK, max);
        }
    }
    let at = values.get(first..)?.iter().position(|value| *value == best && best > lowest)?;
    Some((first + at) as u32)
}
