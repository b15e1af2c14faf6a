//! What a caller asks for and what it is told.

use std::fmt;
use std::time::Duration;

use exotherm_kernels::sampling::MAX_LOGPROBS;
use exotherm_kernels::{Sampled, Sampling, TokenLogprob};

use crate::error::EngineError;

#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<u32>,
    /// At most so many tokens are generated; the prompt and they must fit into the context.
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// Asks for the log-probabilities of every token of the answer and of so many of the likeliest in its place,
    /// `sampling::MAX_LOGPROBS` at most.
    pub logprobs: Option<u8>,
    /// A token of these ends the request and is not emitted.
    pub stop_tokens: Vec<u32>,
    /// Keeps the sequence's state when the request is finished, for `Engine::submit_after` (a chat's next
    /// turn).
    pub hold: bool,
}

impl Request {
    /// Refuses what no engine with this context and vocabulary can do as asked.
    pub fn check(&self, ctx: usize, vocab: usize) -> Result<(), EngineError> {
        let (prompt, max_tokens) = (self.prompt.len(), self.max_tokens);
        if prompt == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if max_tokens == 0 {
            return Err(EngineError::NothingToGenerate);
        }
        if prompt.checked_add(max_tokens).is_none_or(|total| total > ctx) {
            return Err(EngineError::TooLong { prompt, max_tokens, ctx });
        }
        check_tokens(&self.prompt, vocab)?;
        self.sampling.check()?;
        self.sampling.check_tokens(vocab)?;
        match self.logprobs {
            Some(asked) if usize::from(asked) > MAX_LOGPROBS => {
                Err(EngineError::Logprobs { asked, most: MAX_LOGPROBS })
            }
            _ => Ok(()),
        }
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

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "request {}", self.0)
    }
}

#[derive(Clone, PartialEq, Debug)]
pub enum Event {
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
    },
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
    pub(crate) fn of(sampled: &Sampled) -> Option<Box<TokenLogprobs>> {
        let logprobs = sampled.logprobs?;
        Some(Box::new(TokenLogprobs { logprob: logprobs.logprob, top: logprobs.top().to_vec() }))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FinishReason {
    /// This stop token was generated.
    Stop(u32),
    /// `max_tokens` were generated.
    Length,
    Cancelled,
    /// A step failed; `Engine::step` said why.
    Failed,
}

#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct RequestStats {
    pub prompt_tokens: usize,
    /// Tokens of the prompt that a held sequence already had.
    pub cached_tokens: usize,
    /// Tokens emitted; a stop token is not among them.
    pub generated: usize,
    /// From submission to the first step.
    pub queued: Duration,
    /// From the first step to the first generated token.
    pub prompt_time: Duration,
    /// From the first generated token to the end.
    pub decode_time: Duration,
}
