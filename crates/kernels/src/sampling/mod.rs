//! From logits to a token.
//!
//! Bias and penalties change the logits; at temperature 0 the greatest of them is the token. Otherwise, of the tokens
//! likeliest first (of equal logits the lower token), top-k keeps the first, top-p of those the fewest that reach its
//! share of their probability, min-p of those the ones likely enough; one of what is left is drawn. Probabilities are
//! whole numbers (`weights.rs`), so a draw is the same on every backend and on any number of threads.
//!
//! `reference` does it as it is said here; a backend may do it in any way that chooses the same tokens.

pub(crate) mod cpu;
mod random;
pub mod reference;
mod weights;

pub use random::uniform;
pub use reference::argmax;

/// The most tokens whose log-probabilities can be asked for beside that of the token chosen.
pub const MAX_LOGPROBS: usize = 20;

/// A logit may be biased by at most this much.
const MAX_BIAS: f32 = 100.0;

/// How a token is chosen. The default is greedy: the likeliest token, no penalties.
#[derive(Clone, PartialEq, Debug)]
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
    /// Added to the logits of these tokens before anything else is done to them. A token that is listed twice gets both.
    pub logit_bias: Vec<(u32, f32)>,
    /// Only tokens below this one are there at all: a model may have more rows than its vocabulary has pieces.
    pub vocab: usize,
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
            logit_bias: Vec::new(),
            vocab: usize::MAX,
            seed: 0,
        }
    }
}

/// Why tokens cannot be chosen as asked.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum SamplingError {
    #[error("{name} is {value}, it must be {must}")]
    Value { name: &'static str, value: f32, must: &'static str },
    #[error("logit_bias names token {token}, which is outside the vocabulary of {vocab}")]
    BiasToken { token: u32, vocab: usize },
}

impl Sampling {
    /// Refuses values that mean nothing, by name.
    pub fn check(&self) -> Result<(), SamplingError> {
        let finite = |v: f32| v.is_finite();
        let fine = |&(_, bias): &(u32, f32)| (-MAX_BIAS..=MAX_BIAS).contains(&bias);
        let worst_bias = self.logit_bias.iter().find(|entry| !fine(entry)).map_or(0.0, |&(_, bias)| bias);
        let checks: [(&str, f32, bool, &str); 7] = [
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
            ("logit_bias", worst_bias, self.logit_bias.iter().all(fine), "between -100 and 100"),
        ];
        match checks.into_iter().find(|&(_, _, fine, _)| !fine) {
            Some((name, value, _, must)) => Err(SamplingError::Value { name, value, must }),
            None => Ok(()),
        }
    }

    /// Refuses tokens that there are not.
    pub fn check_tokens(&self, vocab: usize) -> Result<(), SamplingError> {
        match self.logit_bias.iter().find(|&&(token, _)| token as usize >= vocab) {
            Some(&(token, _)) => Err(SamplingError::BiasToken { token, vocab }),
            None => Ok(()),
        }
    }

    /// The logits of the tokens that are there.
    fn known<'a>(&self, logits: &'a [f32]) -> &'a [f32] {
        &logits[..logits.len().min(self.vocab)]
    }

    fn penalizes(&self) -> bool {
        self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Whether top-k leaves any of so many tokens out.
    fn limits_count(&self, vocab: usize) -> bool {
        (1..vocab).contains(&self.top_k)
    }

    /// The logit of a token that is in the prompt or the answer, so many times in the answer. What is changed is a float
    /// again, finite if it was.
    fn penalized(&self, logit: f32, count: u64) -> f32 {
        let penalty = f64::from(self.repeat_penalty);
        let mut changed = f64::from(logit);
        changed = if changed > 0.0 { changed / penalty } else { changed * penalty };
        if count > 0 {
            changed -= f64::from(self.presence_penalty) + f64::from(self.frequency_penalty) * count as f64;
        }
        kept_finite(logit, changed)
    }

    /// The least logit that min-p keeps where this is the greatest.
    fn floor(&self, max: f32) -> f64 {
        f64::from(max) + f64::from(self.temperature) * f64::from(self.min_p).ln()
    }
}

/// The value that a logit becomes, as far as floats go; what was no finite number stays what it was.
fn kept_finite(before: f32, after: f64) -> f32 {
    if before.is_finite() { finite(after) } else { before }
}

/// The finite float nearest to a number.
fn finite(value: f64) -> f32 {
    value.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
}

/// A token to be chosen.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow<'a> {
    /// Which of the rows of logits that the last run was asked for. Several tokens may be chosen from one.
    pub logits: usize,
    /// Has passed its check.
    pub sampling: &'a Sampling,
    pub prompt: &'a [u32],
    pub output: &'a [u32],
    /// Where the token will stand; with the seed it decides what is drawn.
    pub position: usize,
    /// Asks for the log-probabilities of the chosen token and of so many of the likeliest, [`MAX_LOGPROBS`] at most.
    pub logprobs: Option<u8>,
    /// The token that stands there already: it is taken, and nothing is chosen. So it is told how likely it was.
    pub given: Option<u32>,
}

/// What came of a [`SampleRow`].
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Sampled {
    /// `None` where logits are no numbers or +∞, or all are −∞.
    pub token: Option<u32>,
    /// Of a token, where they were asked for.
    pub logprobs: Option<Logprobs>,
}

/// Log-probabilities as the model gives them, before bias, penalties and temperature: the logits less the logarithm of
/// the sum of their powers of e, over all tokens. (vLLM does the same unless it is told otherwise.)
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Logprobs {
    /// Of the token chosen.
    pub logprob: f32,
    top: [TokenLogprob; MAX_LOGPROBS],
    top_len: u8,
}

#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct TokenLogprob {
    pub token: u32,
    pub logprob: f32,
}

impl Logprobs {
    fn new(logprob: f32, top: impl Iterator<Item = TokenLogprob>) -> Logprobs {
        let mut logprobs = Logprobs { logprob, ..Logprobs::default() };
        for (place, token) in logprobs.top.iter_mut().zip(top) {
            *place = token;
            logprobs.top_len += 1;
        }
        logprobs
    }

    /// The likeliest tokens, likelier first and among equals the lower one first; fewer than were asked for where no
    /// others are possible at all. Every log-probability is finite.
    pub fn top(&self) -> &[TokenLogprob] {
        &self.top[..self.top_len as usize]
    }
}
