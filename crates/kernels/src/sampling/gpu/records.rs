//! What the device tells of a row that it weighed, and what is chosen by it.

use super::super::cpu::keys::{logit_of, nucleus, token_of, weight_of};
use super::super::weights::{Weights, portion, target};
use super::super::{Logprobs, MAX_LOGPROBS, SampleRow, Sampled, TokenLogprob, finite};
use super::NONE;

/// Words of a record before its list: the likeliest token, the greatest rank, the least that is listed, how many are; the weight
/// of all in two words; the token that was drawn and its rank; the rank of the token that was asked after.
pub(super) const HEAD: usize = 16;

/// The least rank of a token that is possible at all.
const LEAST: u32 = 1;

pub(super) struct Record<'a> {
    pub words: &'a [u32],
    /// Tokens that there are.
    pub vocab: usize,
}

impl Record<'_> {
    fn likeliest(&self) -> Option<u32> {
        Some(self.words[0]).filter(|&token| token != NONE)
    }

    fn greatest(&self) -> f32 {
        logit_at(self.words[1])
    }

    /// Whether all tokens that are possible are listed.
    fn lists_all(&self) -> bool {
        self.words[2] == LEAST
    }

    /// The weight of all tokens.
    fn total(&self) -> u128 {
        u128::from(self.words[4]) | u128::from(self.words[5]) << 32
    }

    /// The keys of the likeliest tokens in their order, unless there was no room for them.
    fn likely(&self) -> Option<Vec<u64>> {
        let list = self.words[HEAD..].get(..2 * self.words[3] as usize)?;
        let mut keys: Vec<u64> = list.chunks_exact(2).map(|pair| key_of(pair[0], pair[1])).collect();
        keys.sort_unstable();
        Some(keys)
    }

    /// The token that was drawn from all.
    fn drawn(&self) -> u64 {
        key_of(self.words[7], self.words[6])
    }
}

/// The key of a token by the rank that the device gives its logit.
fn key_of(rank: u32, token: u32) -> u64 {
    u64::from(!rank) << 32 | u64::from(token)
}

fn logit_at(rank: u32) -> f32 {
    if rank < LEAST { f32::NEG_INFINITY } else { logit_of(key_of(rank, 0)) }
}

/// What came of a row, by the record from which its token is chosen and the one that tells log-probabilities; `None` where they
/// do not tell enough.
pub(super) fn sampled(row: &SampleRow, first: &Record, told: &Record) -> Option<Sampled> {
    let Some(likeliest) = first.likeliest() else { return Some(Sampled::default()) };
    let (token, logit) = match row.given {
        Some(given) => (given, logit_at(told.words[8])),
        None if row.sampling.temperature == 0.0 => (likeliest, first.greatest()),
        None => {
            let key = chosen(row, first)?;
            (token_of(key), logit_of(key))
        }
    };
    let logprobs = match row.logprobs {
        Some(n) => Some(logprobs(told, logit, usize::from(n).min(MAX_LOGPROBS))?),
        None => None,
    };
    Some(Sampled { token: Some(token), logprobs })
}

/// The key of the token that is drawn.
fn chosen(row: &SampleRow, record: &Record) -> Option<u64> {
    let sampling = row.sampling;
    let is_limited = sampling.limits_count(record.vocab);
    if !is_limited && sampling.top_p == 1.0 && sampling.min_p == 0.0 {
        return Some(record.drawn());
    }
    let weights = Weights::new(record.greatest(), sampling.temperature);
    let floor = sampling.floor(record.greatest());
    let mut keys = record.likely()?;
    let is_enough = match is_limited {
        true => keys.len() >= sampling.top_k,
        // All that are not listed are less likely than all that are.
        false => sampling.top_p < 1.0 || f64::from(logit_at(record.words[2])) <= floor,
    };
    if !is_enough && !record.lists_all() {
        return None;
    }
    if is_limited {
        keys.truncate(sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        let weight = weight_of(&keys, weights);
        let enough = portion(if is_limited { weight } else { record.total() }, sampling.top_p);
        if weight < enough {
            return None;
        }
        let last = nucleus(&mut keys, enough, weights).last;
        keys.retain(|&key| key <= last);
    }
    keys.retain(|&key| f64::from(logit_of(key)) >= floor);
    keys.sort_unstable_by_key(|&key| token_of(key));
    let mut left = target(weight_of(&keys, weights), sampling.seed, row.position);
    keys.into_iter().find(|&key| match left.checked_sub(u128::from(weights.of(logit_of(key)))) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}

/// Of a token's logit and of the `n` likeliest tokens, where the record is of weights at temperature 1.
fn logprobs(record: &Record, logit: f32, n: usize) -> Option<Logprobs> {
    let log_sum = Weights::new(record.greatest(), 1.0).log_sum(record.total());
    let logprob = |logit: f32| finite(f64::from(logit) - log_sum);
    let keys = if n == 0 { Vec::new() } else { record.likely()? };
    if keys.len() < n && !record.lists_all() {
        return None;
    }
    let top = keys.iter().take(n);
    let top = top.map(|&key| TokenLogprob { token: token_of(key), logprob: logprob(logit_of(key)) });
    Some(Logprobs::new(logprob(logit), top))
}
