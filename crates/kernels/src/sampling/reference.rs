//! Choosing a token the plain way: every token is weighed and everything is sorted.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use super::weights::{Weights, portion, target};
use super::{Logprobs, MAX_LOGPROBS, SampleRow, Sampled, TokenLogprob, finite, kept_finite};

/// Chooses a token by these logits, one for each token there is.
pub fn sample(logits: &[f32], row: &SampleRow) -> Sampled {
    let logits = row.sampling.known(logits);
    let token = match row.given {
        Some(given) => argmax(logits).map(|_| given),
        None => choose(logits, row),
    };
    let logprobs = token.zip(row.logprobs).map(|(token, n)| logprobs(logits, token, n));
    Sampled { token, logprobs }
}

#[derive(Clone, Copy)]
struct Candidate {
    token: u32,
    logit: f32,
    weight: u128,
}

/// Likelier first, among equals the lower token.
fn order(a: (u32, f32), b: (u32, f32)) -> Ordering {
    b.1.partial_cmp(&a.1).expect("logits are numbers").then(a.0.cmp(&b.0))
}

fn choose(logits: &[f32], row: &SampleRow) -> Option<u32> {
    let (sampling, logits) = (row.sampling, changed(logits, row));
    let best = argmax(&logits)?;
    if sampling.temperature == 0.0 {
        return Some(best);
    }
    let max = logits[best as usize];
    let weights = Weights::new(max, sampling.temperature);
    let candidate = |(token, &logit): (usize, &f32)| Candidate {
        token: token as u32,
        logit,
        weight: u128::from(weights.of(logit)),
    };
    let mut kept: Vec<Candidate> = logits.iter().enumerate().map(candidate).collect();
    kept.sort_by(|a, b| order((a.token, a.logit), (b.token, b.logit)));
    if sampling.top_k > 0 {
        kept.truncate(sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        let enough = portion(kept.iter().map(|c| c.weight).sum(), sampling.top_p);
        let mut sum = 0;
        kept.retain(|c| {
            let is_needed = sum < enough;
            sum += c.weight;
            is_needed
        });
    }
    kept.retain(|c| f64::from(c.logit) >= sampling.floor(max));
    kept.sort_by_key(|c| c.token);
    let mut left = target(kept.iter().map(|c| c.weight).sum(), sampling.seed, row.position);
    for candidate in kept {
        if candidate.weight > left {
            return Some(candidate.token);
        }
        left -= candidate.weight;
    }
    unreachable!("the target is less than the sum of all weights")
}

/// The logits with bias and penalties. Tokens that have no logit are nobody's concern.
fn changed(logits: &[f32], row: &SampleRow) -> Vec<f32> {
    let mut logits = logits.to_vec();
    for &(token, bias) in &row.sampling.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = kept_finite(*logit, f64::from(*logit) + f64::from(bias));
        }
    }
    let mut counts = HashMap::new();
    row.output.iter().for_each(|&token| *counts.entry(token).or_insert(0) += 1);
    let known: HashSet<u32> = row.prompt.iter().chain(row.output).copied().collect();
    for token in known {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = row.sampling.penalized(*logit, counts.get(&token).copied().unwrap_or(0));
        }
    }
    logits
}

fn logprobs(logits: &[f32], token: u32, n: u8) -> Logprobs {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let log_sum = max + logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln();
    // One that is given may be none of those that are there: it could not be chosen.
    let logit = |token: u32| logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let logprob = |token: u32| finite(f64::from(logit(token)) - log_sum);
    let possible = |&token: &u32| logits[token as usize] > f32::NEG_INFINITY;
    let mut tokens: Vec<u32> = (0..logits.len() as u32).filter(possible).collect();
    tokens.sort_by(|&a, &b| order((a, logits[a as usize]), (b, logits[b as usize])));
    let top = tokens.into_iter().take(usize::from(n).min(MAX_LOGPROBS));
    Logprobs::new(logprob(token), top.map(|token| TokenLogprob { token, logprob: logprob(token) }))
}

/// The index of the greatest value, the lowest of equals; `None` where a value is no number or +∞, or all are −∞.
pub fn argmax(values: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (i, &value) in values.iter().enumerate() {
        if value.is_nan() || value == f32::INFINITY {
            return None;
        }
        if value > max {
            (best, max) = (Some(i as u32), value);
        }
    }
    best
}
