//! One sequence: its tokens, how far its state has come, and where the state lies.

use std::time::Instant;

use exotherm_kernels::Sampling;

use crate::request::{FinishReason, Request, RequestId, RequestStats};

pub(crate) struct Sequence {
    pub id: RequestId,
    /// The prompt, then what was generated.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// Tokens whose state is kept; the others are still to run.
    pub computed: usize,
    pub blocks: Vec<u32>,
    pub sampling: Sampling,
    pub logprobs: Option<u8>,
    pub hold: bool,
    /// Finished and kept for its next turn.
    pub is_held: bool,
    max_tokens: usize,
    stop_tokens: Vec<u32>,
    cached: usize,
    submitted: Instant,
    pub started: Option<Instant>,
    first_token: Option<Instant>,
}

impl Sequence {
    pub fn new(id: RequestId, request: Request, now: Instant) -> Sequence {
        let prompt_len = request.prompt.len();
        let mut tokens = request.prompt;
        tokens.reserve_exact(request.max_tokens);
        Sequence {
            id,
            tokens,
            prompt_len,
            computed: 0,
            blocks: Vec::new(),
            sampling: request.sampling,
            logprobs: request.logprobs,
            hold: request.hold,
            is_held: false,
            max_tokens: request.max_tokens,
            stop_tokens: request.stop_tokens,
            cached: 0,
            submitted: now,
            started: None,
            first_token: None,
        }
    }

    /// The next turn of this sequence. State that can be kept is kept: keys and values as far as the tokens
    /// are the same, recurrent state only if all it has seen is the beginning of the new prompt, for it
    /// cannot go back. The last token of a prompt always runs, because its logits are wanted.
    pub fn continued(self, id: RequestId, request: Request, is_recurrent: bool, now: Instant) -> Sequence {
        let most = self.computed.min(request.prompt.len() - 1);
        let pairs = self.tokens[..most].iter().zip(&request.prompt);
        let common = pairs.take_while(|(old, new)| old == new).count();
        let kept = if is_recurrent && common < self.computed { 0 } else { common };
        let next = Sequence::new(id, request, now);
        Sequence { computed: kept, cached: kept, blocks: self.blocks, ..next }
    }

    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Tokens that are still to run: one for a decode, more for a prompt.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Takes the token that follows; `Some` if it ends the request. A stop token is not kept.
    pub fn accept(&mut self, token: u32, now: Instant) -> Option<FinishReason> {
        self.first_token.get_or_insert(now);
        if self.stop_tokens.contains(&token) {
            return Some(FinishReason::Stop(token));
        }
        self.tokens.push(token);
        (self.output().len() == self.max_tokens).then_some(FinishReason::Length)
    }

    pub fn stats(&self, now: Instant) -> RequestStats {
        let started = self.started.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        RequestStats {
            prompt_tokens: self.prompt_len,
            cached_tokens: self.cached,
            generated: self.output().len(),
            queued: started - self.submitted,
            prompt_time: first_token - started,
            decode_time: now - first_token,
        }
    }
}
