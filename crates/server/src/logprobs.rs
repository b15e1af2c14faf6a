//! How likely tokens were, in the two forms that OpenAI has.

use exotherm_tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use crate::generate::Logged;

/// What stands for a token that cannot be: JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

pub fn of_chat(tokenizer: &Tokenizer, log: &[Logged]) -> Value {
    let entry = |token: u32, logprob: f32| {
        let piece = tokenizer.piece(token).unwrap_or_default();
        json!({ "token": String::from_utf8_lossy(piece), "logprob": number(logprob), "bytes": piece })
    };
    let content = log.iter().map(|logged| {
        let mut told = entry(logged.token, logged.logprobs.logprob);
        told["top_logprobs"] = logged.logprobs.top.iter().map(|top| entry(top.token, top.logprob)).collect();
        told
    });
    json!({ "content": content.collect::<Vec<Value>>(), "refusal": null })
}

pub fn of_completion(tokenizer: &Tokenizer, log: &[Logged]) -> Value {
    let top = |logged: &Logged| {
        let told =
            |top: &exotherm_engine::TokenLogprob| (name(tokenizer, top.token), number(top.logprob).into());
        logged.logprobs.top.iter().map(told).collect::<Map<String, Value>>()
    };
    json!({
        "tokens": log.iter().map(|logged| name(tokenizer, logged.token)).collect::<Vec<_>>(),
        "token_logprobs": log.iter().map(|logged| number(logged.logprobs.logprob)).collect::<Vec<_>>(),
        "top_logprobs": log.iter().map(top).collect::<Vec<_>>(),
        "text_offset": log.iter().map(|logged| logged.offset).collect::<Vec<_>>(),
    })
}

/// The token's text; of a token that is no text by itself, its bytes.
fn name(tokenizer: &Tokenizer, token: u32) -> String {
    let piece = tokenizer.piece(token).unwrap_or_default();
    match std::str::from_utf8(piece) {
        Ok(text) => text.to_string(),
        Err(_) => {
            let bytes: String = piece.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{bytes}")
        }
    }
}

fn number(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { IMPOSSIBLE }
}
