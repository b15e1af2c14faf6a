//! One sequence: its tokens, how far its state has come, and where the state lies.

use std::sync::Arc;
use std::time::Instant;

use exotherm_kernels::{BLOCK, Sampling};

use crate::blocks::PrefixId;
use crate::embedding::Embedding;
use crate::prefix::{Beginning, Chain, Digest};
use crate::request::{FinishReason, Request, RequestId, RequestStats, TokenLogprobs};
use crate::snapshots::SnapshotId;

/// Tokens for which an answer has room from the start.
const FIRST_ROOM: usize = 4096;

/// Who comes first: the least. A request that waits keeps its rank while those that come after it get ever higher ones,
/// which is what ageing is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Rank {
    /// The step in which it was submitted, earlier by its priority.
    pub since: i64,
    pub id: RequestId,
}

pub(crate) struct Sequence {
    pub id: RequestId,
    pub rank: Rank,
    /// The prompt, then what was generated.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// Tokens whose state is kept; the others are still to run.
    pub computed: usize,
    pub blocks: Vec<u32>,
    pub sampling: Sampling,
    pub logprobs: Option<u8>,
    /// What is asked for of the prompt's tokens, and what is known of it: of those after the first, in their order. Other
    /// choices of the same prompt have the same, and who begins anew goes on with it.
    pub prompt_logprobs: Option<u8>,
    pub prompt_log: Arc<Vec<TokenLogprobs>>,
    pub embedding: Option<Arc<Embedding>>,
    pub deadline: Option<Instant>,
    /// The choice of the same prompt that is run first; this one waits until it can begin where that one is.
    pub leader: Option<RequestId>,
    pub prefix: Prefix,
    /// Its latest state at the end of a block, which the next one replaces.
    pub tail: Option<SnapshotId>,
    /// Tokens that its prompt has in common with an earlier one, as far as that is known, where no state of them is kept.
    pub common: Option<usize>,
    pub started: Option<Instant>,
    /// Tokens of the prompt that were not run; `None` before it first began.
    pub cached: Option<usize>,
    /// Whether it began where another choice of its prompt was.
    pub is_fork: bool,
    pub preemptions: usize,
    /// Of the stop token that ended it.
    pub stop_logprob: Option<f32>,
    max_tokens: usize,
    most_positions: usize,
    stop_tokens: Vec<u32>,
    submitted: Instant,
    first_token: Option<Instant>,
}

/// What of a sequence's full blocks is known to the cache.
#[derive(Clone)]
pub(crate) struct Prefix {
    /// The names of the beginnings that end with each full block, as far as they were asked for.
    names: Vec<u64>,
    /// Their digests, where states are found by them.
    digests: Vec<Digest>,
    /// Blocks of the table that are registered, the first ones.
    pub registered: usize,
    /// Which beginning they are.
    pub id: PrefixId,
    /// Whether the next block can be registered; not if another beginning has taken the name of one.
    pub is_open: bool,
}

impl Prefix {
    fn empty() -> Prefix {
        let (names, digests) = (Vec::new(), Vec::new());
        Prefix { names, digests, registered: 0, id: PrefixId::EMPTY, is_open: true }
    }

    /// No block is registered any more; the names are as before.
    pub fn restart(&mut self) {
        let (names, digests) = (std::mem::take(&mut self.names), std::mem::take(&mut self.digests));
        *self = Prefix { names, digests, ..Prefix::empty() };
    }
}

impl Sequence {
    pub fn new(id: RequestId, rank: Rank, request: Request, now: Instant) -> Sequence {
        let (prompt_len, most_positions) = (request.prompt.len(), request.most_positions());
        let mut tokens = request.prompt;
        tokens.reserve_exact(request.max_tokens.min(FIRST_ROOM));
        Sequence {
            id,
            rank,
            tokens,
            prompt_len,
            computed: 0,
            blocks: Vec::new(),
            sampling: request.sampling,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            prompt_log: Arc::default(),
            embedding: request.embedding,
            deadline: request.deadline,
            leader: None,
            prefix: Prefix::empty(),
            tail: None,
            common: None,
            started: None,
            cached: None,
            is_fork: false,
            preemptions: 0,
            stop_logprob: None,
            max_tokens: request.max_tokens,
            most_positions,
            stop_tokens: request.stop_tokens,
            submitted: now,
            first_token: None,
        }
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

    /// Positions that it needs before it has `more` tokens more.
    pub fn needs(&self, more: usize) -> usize {
        (self.tokens.len() + more).min(self.most_positions)
    }

    /// The first position whose logits are wanted: those of the last token always are.
    pub fn wanted_from(&self) -> usize {
        let logged = self.prompt_log.len();
        match self.prompt_logprobs {
            Some(_) if logged + 1 < self.prompt_len => logged,
            _ => self.tokens.len() - 1,
        }
    }

    /// Tokens that need not be run where their state is known. Of an embedding each must, because it is made of what all of
    /// them come to.
    pub fn passable(&self) -> usize {
        if self.embedding.is_some() { 0 } else { self.wanted_from() }
    }

    /// Whether the logits before this position have been told of, where they were asked for.
    pub fn is_logged_to(&self, position: usize) -> bool {
        self.prompt_logprobs.is_none() || position.min(self.prompt_len - 1) <= self.prompt_log.len()
    }

    /// The tokens of a full block.
    pub fn block_tokens(&self, block: usize) -> &[u32] {
        &self.tokens[block * BLOCK..(block + 1) * BLOCK]
    }

    /// The name of the beginning that ends with this block, which must be full.
    pub fn name(&mut self, block: usize, chain: Chain) -> u64 {
        for i in self.prefix.names.len()..=block {
            let before = self.prefix.names.last().copied().unwrap_or(0);
            let name = chain(before, self.block_tokens(i));
            self.prefix.names.push(name);
        }
        self.prefix.names[block]
    }

    /// All tokens up to the end of this block, which must be full.
    pub fn beginning(&mut self, block: usize, chain: Chain) -> Beginning {
        for i in self.prefix.digests.len()..=block {
            let before = self.prefix.digests.last().copied().unwrap_or(Beginning::EMPTY_DIGEST);
            self.prefix.digests.push(before.and(self.block_tokens(i)));
        }
        Beginning { name: self.name(block, chain), digest: self.prefix.digests[block] }
    }

    /// Takes the token that follows; `Some` if it ends the request. A stop token is not kept, nor one where none is wanted.
    pub fn accept(&mut self, token: u32, now: Instant) -> Option<FinishReason> {
        self.first_token.get_or_insert(now);
        if self.max_tokens == 0 {
            return Some(FinishReason::Length);
        }
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
            cached_tokens: self.cached.unwrap_or(0),
            is_fork: self.is_fork,
            generated: self.output().len(),
            stop_logprob: self.stop_logprob,
            preemptions: self.preemptions,
            queued: started - self.submitted,
            prompt_time: first_token - started,
            decode_time: now - first_token,
        }
    }
}
