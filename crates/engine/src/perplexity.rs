//! Perplexity as llama.cpp's tool computes it, so that the values can be compared.
//!
//! The text is cut into windows of `ctx` tokens (what is left at the end is dropped), each run from an empty
//! state with its first token replaced by BOS where the vocabulary adds one. The first half of a window is
//! context only: the logits of positions `ctx/2 .. ctx-2` are asked how likely the token is that follows.

use crate::error::EngineError;
use crate::evaluate::{Evaluator, log_sum_exp};

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood.
    pub value: f64,
    /// Standard error of `value`.
    pub stderr: f64,
    /// Tokens whose likelihood was asked for.
    pub tokens: usize,
    /// Windows that were run, and that there are.
    pub windows: usize,
    pub windows_total: usize,
}

/// Sums over negative log-likelihoods.
#[derive(Default)]
struct Sums {
    count: usize,
    nll: f64,
    squares: f64,
}

impl Sums {
    fn add(&mut self, nll: f64) {
        self.count += 1;
        self.nll += nll;
        self.squares += nll * nll;
    }

    fn perplexity(&self, windows: usize, windows_total: usize) -> Perplexity {
        let n = self.count as f64;
        let mean = self.nll / n;
        let variance = self.squares / n - mean * mean;
        // Equal likelihoods leave a variance of 0 or, rounded, a hair less.
        let error = if variance > 0.0 { (variance / (n - 1.0)).sqrt() } else { 0.0 };
        let value = mean.exp();
        Perplexity { value, stderr: error * value, tokens: self.count, windows, windows_total }
    }
}

/// The perplexity of `tokens` in windows of `ctx`. `bos` is given if the vocabulary adds it. `progress` sees
/// the value so far after every window.
pub fn perplexity(
    evaluator: &mut Evaluator,
    tokens: &[u32],
    ctx: usize,
    bos: Option<u32>,
    mut progress: impl FnMut(&Perplexity),
) -> Result<Perplexity, EngineError> {
    if ctx < 3 {
        let must = "at least 3 for perplexity, or no token follows the context";
        return Err(EngineError::Config { name: "ctx", value: ctx, must });
    }
    if tokens.len() / 2 < ctx {
        let need = ctx.saturating_mul(2);
        return Err(EngineError::TooFewTokens { ctx, need, have: tokens.len() });
    }
    let asked: Vec<usize> = (ctx / 2..ctx - 1).collect();
    let total = tokens.len() / ctx;
    let mut sums = Sums::default();
    let mut so_far = None;
    for (i, window) in tokens.chunks_exact(ctx).enumerate() {
        let mut run = window.to_vec();
        if let Some(bos) = bos {
            run[0] = bos;
        }
        let mut bad = None;
        evaluator.logits(&run, &asked, |position, logits| {
            let next = window[position + 1] as usize;
            let nll = logits.get(next).map_or(f64::NAN, |&logit| log_sum_exp(logits) - f64::from(logit));
            if nll.is_nan() {
                bad.get_or_insert(position);
            }
            sums.add(nll);
        })?;
        if let Some(position) = bad {
            return Err(EngineError::NotNumbers { position });
        }
        let value = sums.perplexity(i + 1, total);
        progress(&value);
        so_far = Some(value);
    }
    Ok(so_far.expect("there are two windows at least"))
}
