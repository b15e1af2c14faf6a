//! What is told beside the text: usage, timings, the receipt.

use std::time::Duration;

use serde_json::{Value, json};

use crate::generate::{Choice, Prompt};
use crate::params::Params;

/// What all replies to a request have in common.
pub struct Envelope {
    pub id: String,
    pub object: &'static str,
    pub created_s: u64,
    pub model: String,
    pub fingerprint: String,
}

impl Envelope {
    /// The fields that a reply begins with, without the closing brace.
    pub fn head(&self) -> String {
        let mut head = json!({
            "id": self.id,
            "object": self.object,
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        })
        .to_string();
        head.pop();
        head
    }
}

/// Tokens as OpenAI counts them: a prompt once, however many choices it has.
pub fn usage(prompts: &[Prompt], choices: &[Choice], per_prompt: usize) -> Value {
    let prompt: usize = prompts.iter().map(|prompt| prompt.ids.len()).sum();
    let completion: usize = choices.iter().map(|choice| choice.tokens).sum();
    let cached: usize = choices.iter().step_by(per_prompt).map(|choice| choice.stats.cached_tokens).sum();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": { "cached_tokens": cached },
    })
}

/// Where the time went: until the first choice began, from there until the last of the first tokens came, and from the first
/// of these until the last token of all. Choices that take turns read and write at the same time, so the last two may
/// overlap. A prompt is read once for all of its choices, so many of them.
pub fn timings(choices: &[Choice], per_prompt: usize) -> Value {
    let first = |time: fn(&Choice) -> Duration| choices.iter().map(time).min().unwrap_or_default();
    let last = |time: fn(&Choice) -> Duration| choices.iter().map(time).max().unwrap_or_default();
    let sum = |count: fn(&Choice) -> usize| choices.iter().map(count).sum::<usize>();
    let queued = first(|c| c.stats.queued);
    let prompt = last(read).saturating_sub(queued);
    let decode = last(|c| read(c) + c.stats.decode_time).saturating_sub(first(read));
    let once = |count: fn(&Choice) -> usize| choices.iter().step_by(per_prompt).map(count).sum::<usize>();
    let (prompt_tokens, cached) = (once(|c| c.stats.prompt_tokens), once(|c| c.stats.cached_tokens));
    let generated = sum(|c| c.stats.generated);
    // The first token of a choice comes with its prompt.
    let decoded = sum(|c| c.stats.generated.saturating_sub(1));
    json!({
        "queued_ms": milliseconds(queued),
        "prompt_ms": milliseconds(prompt),
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached,
        "prompt_tok_s": rate(prompt_tokens.saturating_sub(cached), prompt),
        "decode_ms": milliseconds(decode),
        "generated_tokens": generated,
        "decode_tok_s": rate(decoded, decode),
    })
}

/// The same for texts that are embedded, which took so long all in all: they are prompts and nothing else.
pub fn embedding_timings(tokens: usize, queued: Duration, took: Duration) -> Value {
    let prompt = took.saturating_sub(queued);
    json!({
        "queued_ms": milliseconds(queued),
        "prompt_ms": milliseconds(prompt),
        "prompt_tokens": tokens,
        "cached_tokens": 0,
        "prompt_tok_s": rate(tokens, prompt),
        "decode_ms": 0.0,
        "generated_tokens": 0,
        "decode_tok_s": null,
    })
}

/// When a choice's prompt was read, from when it was asked for.
fn read(choice: &Choice) -> Duration {
    choice.stats.queued + choice.stats.prompt_time
}

pub fn receipt(params: &Params, choices: &[Choice]) -> Value {
    let mut receipt = params.model.receipt();
    receipt["seed"] = json!(params.sampling.seed);
    receipt["cached_tokens"] = choices.iter().map(|choice| choice.stats.cached_tokens).collect();
    receipt
}

pub fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Tokens per second; nothing where there was no time to speak of.
fn rate(tokens: usize, time: Duration) -> Option<f64> {
    let seconds = time.as_secs_f64();
    (tokens > 0 && seconds > 0.0).then(|| (tokens as f64 / seconds * 100.0).round() / 100.0)
}
