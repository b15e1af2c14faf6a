use std::any::Any;

use exotherm_kernels::{BackendError, SamplingError};

use crate::config::MemoryPlan;

/// Everything that a caller can be told.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error(
        "a prompt of {prompt} tokens and {max_tokens} tokens to generate need a context of {}, it is {ctx}; \
         a larger --ctx, a shorter prompt or fewer --max-tokens help",
        prompt.saturating_add(*max_tokens)
    )]
    TooLong { prompt: usize, max_tokens: usize, ctx: usize },
    #[error("{tokens} tokens do not fit into a context of {ctx}; a larger --ctx helps")]
    TooManyTokens { tokens: usize, ctx: usize },
    #[error("token {token} is outside the vocabulary of {vocab}")]
    Token { token: u32, vocab: usize },
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    #[error("logprobs of {asked} tokens were asked for, {most} can be had")]
    Logprobs { asked: u8, most: usize },
    #[error("{name} is {value}, it must be {must}")]
    Config { name: &'static str, value: usize, must: &'static str },
    #[error("a context of {ctx} is more than the {limit} positions that this model holds")]
    Context { ctx: usize, limit: usize },
    #[error(
        "a context of {ctx} for {max_seqs} sequences needs more memory than can be addressed; a smaller --ctx needs less"
    )]
    Memory { ctx: usize, max_seqs: usize },
    #[error(
        "{} MiB of memory are too few: a sequence of {ctx} tokens beside {max_seqs} places needs {} MiB, of which weights \
         {}, KV cache {}, states {}, scratch {}{}; a smaller --ctx or --max-seqs needs less",
        budget >> 20,
        mib(least.total().saturating_add(*beside)),
        mib(least.weights),
        mib(least.kv),
        mib(least.recurrent),
        mib(least.scratch),
        if *beside > 0 { format!(", beside the model {}", mib(*beside)) } else { String::new() }
    )]
    Budget { budget: usize, ctx: usize, max_seqs: usize, least: MemoryPlan, beside: usize },
    #[error(
        "a prompt of {prompt} tokens and {max_tokens} tokens to generate need {need} blocks of the KV cache, there are \
         {blocks}; a larger --memory, a shorter prompt or fewer --max-tokens help"
    )]
    TooManyBlocks { prompt: usize, max_tokens: usize, need: usize, blocks: usize },
    #[error("{n} answers were asked for; between 1 and {most} can be made and waited for at a time")]
    Choices { n: usize, most: usize },
    #[error("the priority is {priority}, it must be between -{most} and {most}")]
    Priority { priority: i32, most: i32 },
    #[error("{running} requests run and {waiting} wait, there is room for {queue} to wait; try again later")]
    QueueFull { running: usize, waiting: usize, queue: usize },
    #[error(
        "the model's logits for position {position} are not numbers: its weights or the backend are at fault"
    )]
    NotNumbers { position: usize },
    #[error("logits of position {position} were asked for, there are {tokens} tokens")]
    Position { position: usize, tokens: usize },
    #[error(
        "perplexity in windows of {ctx} needs at least {need} tokens, the text has {have}; a smaller --ctx helps"
    )]
    TooFewTokens { ctx: usize, need: usize, have: usize },
    #[error("the step panicked: {0}")]
    Panicked(String),
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl EngineError {
    /// What a caught panic said.
    pub(crate) fn panicked(payload: &(dyn Any + Send)) -> EngineError {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        EngineError::Panicked(text.unwrap_or("no message").to_string())
    }
}

/// Rounded up, so that nothing that is needed is 0.
fn mib(bytes: usize) -> usize {
    bytes.div_ceil(1 << 20)
}
