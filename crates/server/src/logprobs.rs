//! How likely tokens were, in the two forms that OpenAI has, written as JSON without anything in between.

use std::fmt::Write as _;

use exotherm_engine::TokenLogprob;
use exotherm_tokenizer::Tokenizer;
use serde_json::Value;

use crate::generate::Logged;

/// What stands for a token that cannot be, of which the engine says the least number there is: JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

/// About what a token's log-probability takes in a reply.
pub const LOGGED_BYTES: usize = 128;

pub fn of_chat(tokenizer: &Tokenizer, log: &[Logged]) -> String {
    let mut out = String::from(r#"{"content":["#);
    list(&mut out, log, |out, logged| {
        entry(tokenizer, logged.token, &logprob(logged), out);
        out.push_str(r#","top_logprobs":["#);
        list(out, top(logged), |out, top| {
            entry(tokenizer, top.token, &number(top.logprob), out);
            out.push('}');
        });
        out.push_str("]}");
    });
    out + r#"],"refusal":null}"#
}

/// A token's entry, still open.
fn entry(tokenizer: &Tokenizer, token: u32, logprob: &Value, out: &mut String) {
    let piece = tokenizer.piece(token).unwrap_or_default();
    let text = Value::from(String::from_utf8_lossy(piece));
    // Bytes are written with commas between them, as JSON has it, too.
    write(out, format_args!(r#"{{"token":{text},"logprob":{logprob},"bytes":{piece:?}"#));
}

pub fn of_completion(tokenizer: &Tokenizer, log: &[Logged]) -> String {
    let mut out = String::from(r#"{"tokens":["#);
    list(&mut out, log, |out, logged| write(out, format_args!("{}", name(tokenizer, logged.token))));
    out.push_str(r#"],"token_logprobs":["#);
    list(&mut out, log, |out, logged| write(out, format_args!("{}", logprob(logged))));
    out.push_str(r#"],"top_logprobs":["#);
    list(&mut out, log, |out, logged| {
        let Some(known) = &logged.logprobs else { return out.push_str("null") };
        out.push('{');
        // The token itself is among them, also where others are likelier.
        let own = TokenLogprob { token: logged.token, logprob: known.logprob };
        let is_own = |top: &TokenLogprob| top.token == own.token;
        let own = (!known.top.iter().any(is_own)).then_some(own);
        let top: Vec<(Value, TokenLogprob)> =
            known.top.iter().copied().chain(own).map(|top| (name(tokenizer, top.token), top)).collect();
        // Two tokens may have one text; the likelier one comes first, and a name stands once.
        let first = |i: usize| !top[..i].iter().any(|(name, _)| *name == top[i].0);
        let named: Vec<usize> = (0..top.len()).filter(|&i| first(i)).collect();
        list(out, &named, |out, &i| write(out, format_args!("{}:{}", top[i].0, number(top[i].1.logprob))));
        out.push('}');
    });
    out.push_str(r#"],"text_offset":["#);
    list(&mut out, log, |out, logged| write(out, format_args!("{}", logged.offset)));
    out + "]}"
}

/// Items with commas between them.
fn list<T>(out: &mut String, items: &[T], one: impl Fn(&mut String, &T)) {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        one(out, item);
    }
}

fn write(out: &mut String, text: std::fmt::Arguments) {
    // Writing to a string does not fail.
    let _ = out.write_fmt(text);
}

/// The token's text; of a token that is no text by itself, its bytes.
fn name(tokenizer: &Tokenizer, token: u32) -> Value {
    let piece = tokenizer.piece(token).unwrap_or_default();
    match std::str::from_utf8(piece) {
        Ok(text) => text.into(),
        Err(_) => {
            let bytes: String = piece.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{bytes}").into()
        }
    }
}

/// Of a token, if anything is known of it.
fn logprob(logged: &Logged) -> Value {
    logged.logprobs.as_ref().map_or(Value::Null, |known| number(known.logprob))
}

/// The likeliest in a token's place, as far as they are known.
fn top(logged: &Logged) -> &[TokenLogprob] {
    logged.logprobs.as_ref().map_or(&[], |known| &known.top)
}

fn number(logprob: f32) -> Value {
    if logprob > f32::MIN { logprob.into() } else { IMPOSSIBLE.into() }
}
