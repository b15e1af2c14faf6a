//! What a caller asks for and what it is told.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use exotherm_kernels::sampling::MAX_LOGPROBS;
use exotherm_kernels::{Sampled, Sampling, TokenLogprob};

use crate::embedding::Embedding;
use crate::error::EngineError;

#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<u32>,
    /// At most so many tokens are generated; the prompt and they must fit into the context. 0: the prompt is run and that
    /// is all.
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// Asks for the log-probabilities of every token of the answer and of so many of the likeliest in its place,
    /// `sampling::MAX_LOGPROBS` at most.
    pub logprobs: Option<u8>,
    /// The same for the tokens of the prompt after the first, each given those before it.
    pub prompt_logprobs: Option<u8>,
    /// A token of these ends the request and is not emitted.
    pub stop_tokens: Vec<u32>,
    /// Answers to be made of the same prompt, each a request of its own; the seed of each is one more than the one's
    /// before it.
    pub n: usize,
    /// Every level goes before requests that came up to 64 steps earlier; 0 is usual.
    pub priority: i32,
    /// Asks for the prompt's embedding, which is left here. Such a prompt is run from its beginning, whatever is known of it.
    pub embedding: Option<Arc<Embedding>>,
    /// When the request ends in any case.
    pub deadline: Option<Instant>,
}

impl Request {
    /// The likeliest tokens, with nothing that ends them early.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Request {
        Request {
            prompt,
            max_tokens,
            sampling: Sampling::default(),
            logprobs: None,
            prompt_logprobs: None,
            stop_tokens: Vec::new(),
            n: 1,
            priority: 0,
            embedding: None,
            deadline: None,
        }
    }

    /// Refuses what no engine with this context and vocabulary can do as asked.
    pub fn check(&self, ctx: usize, vocab: usize) -> Result<(), EngineError> {
        let (prompt, max_tokens) = (self.prompt.len(), self.max_tokens);
        if prompt == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if prompt.checked_add(max_tokens).is_none_or(|total| total > ctx) {
            return Err(EngineError::TooLong { prompt, max_tokens, ctx });
        }
        check_tokens(&self.prompt, vocab)?;
        self.sampling.check()?;
        self.sampling.check_tokens(vocab)?;
        match self.logprobs.max(self.prompt_logprobs) {
            Some(asked) if usize::from(asked) > MAX_LOGPROBS => {
                Err(EngineError::Logprobs { asked, most: MAX_LOGPROBS })
            }
            _ => Ok(()),
        }
    }

    /// Positions that are run at most: the last token that is generated never is.
    pub(crate) fn most_positions(&self) -> usize {
        self.prompt.len() + self.max_tokens.saturating_sub(1)
    }
}

pub(crate) fn check_tokens(tokens: &[u32], vocab: usize) -> Result<(), EngineError> {
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(&token) => Err(EngineError::Token { token, vocab }),
        None => Ok(()),
    }
}

/// Names a request for as long as its engine lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub(crate) u64);

impl RequestId {
    /// Choice number `index` of the request of several answers that `submit` gave this name for.
    pub fn choice(self, index: usize) -> RequestId {
        RequestId(self.0 + index as u64)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "request {}", self.0)
    }
}

#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// How likely each token of the prompt after the first was, where the request asked for it. Told once, when the whole
    /// prompt was read.
    Prompt { id: RequestId, logprobs: Arc<Vec<TokenLogprobs>> },
    /// Token number `index` of the answer.
    Token {
        id: RequestId,
        token: u32,
        index: usize,
        /// Where the request asked for them.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    Finished {
        id: RequestId,
        reason: FinishReason,
        stats: RequestStats,
        /// Why, for a request that failed.
        fault: Option<Arc<str>>,
    },
}

impl Event {
    /// Why a request failed, where this is its end.
    pub fn fault(&self) -> Option<&str> {
        match self {
            Event::Finished { fault, .. } => fault.as_deref(),
            Event::Prompt { .. } | Event::Token { .. } => None,
        }
    }
}

/// Log-probabilities as the model gives them, before bias, penalties and temperature.
#[derive(Clone, PartialEq, Debug)]
pub struct TokenLogprobs {
    /// Of the token itself.
    pub logprob: f32,
    /// The likeliest tokens in its place, likelier first. The token may not be among them.
    pub top: Vec<TokenLogprob>,
}

impl TokenLogprobs {
    pub(crate) fn of(sampled: &Sampled) -> Option<TokenLogprobs> {
        let logprobs = sampled.logprobs?;
        Some(TokenLogprobs { logprob: logprobs.logprob, top: logprobs.top().to_vec() })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FinishReason {
    /// This stop token was generated.
    Stop(u32),
    /// `max_tokens` were generated.
    Length,
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// Its logits were no numbers, or something broke; the fault says what.
    Failed,
}

#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct RequestStats {
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose state was there already.
    pub cached_tokens: usize,
    /// Whether they were there because another choice of the same request had just read them.
    pub is_fork: bool,
    /// Tokens emitted; a stop token is not among them.
    pub generated: usize,
    /// How likely the stop token was that ended the answer, where log-probabilities were asked for.
    pub stop_logprob: Option<f32>,
    /// Times that it gave its blocks back to others and was computed anew.
    pub preemptions: usize,
    /// From submission to the first step.
    pub queued: Duration,
    /// From the first step to the first generated token, or to the end of the prompt where none is.
    pub prompt_time: Duration,
    /// From the first generated token to the end.
    pub decode_time: Duration,
}
