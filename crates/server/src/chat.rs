//! `/v1/chat/completions`.

use exotherm_tokenizer::Message;
use serde_json::json;

use crate::answer::{Job, Kind};
use crate::error::ApiError;
use crate::fields::{Fields, Raw, each, is_array, is_string, string, wrong_type};
use crate::generate::Prompt;
use crate::model::{Models, ServedModel};
use crate::params::{Leniency, MOST_LOGPROBS, Params};

/// Parameters of OpenAI's that are not supported here.
const UNSUPPORTED: &[&str] = &[
    "audio",
    "function_call",
    "functions",
    "modalities",
    "prediction",
    "prompt_cache_retention",
    "reasoning_effort",
    "tool_choice",
    "tools",
    "verbosity",
    "web_search_options",
];

pub fn read(body: &[u8], models: &Models, lenient: bool) -> Result<Job, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut leniency = Leniency::new(lenient);
    let mut params = Params::read(&mut fields, models, &mut leniency, true)?;
    params.logprobs = logprobs(&mut fields)?;
    let listed = fields.take("messages");
    let messages = messages(fields.need("messages", listed)?, &params.model, &mut leniency)?;
    leniency.only(&mut fields, "modalities", &[json!(["text"])])?;
    leniency.only(&mut fields, "tools", &[json!([])])?;
    leniency.only(&mut fields, "tool_choice", &[json!("none"), json!("auto")])?;
    leniency.only(&mut fields, "parallel_tool_calls", &[json!(true), json!(false)])?;
    leniency.finish(fields, UNSUPPORTED)?;
    let ids = params.model.encode_chat(&messages)?;
    let prompts = [Prompt { ids, echo: String::new() }].into();
    Ok(Job { params, kind: Kind::Chat, prompts, ignored: leniency.ignored })
}

/// How many of the likeliest tokens are to be told, if log-probabilities are asked for at all.
fn logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0, MOST_LOGPROBS)?;
    if top.is_some() && !wanted {
        let message = "top_logprobs needs \"logprobs\": true";
        return Err(ApiError::param("top_logprobs", "invalid_value", message));
    }
    Ok(wanted.then_some(top.unwrap_or(0) as u8))
}

fn messages(value: Raw, model: &ServedModel, leniency: &mut Leniency) -> Result<Vec<Message>, ApiError> {
    const PARAM: &str = "messages";
    if !is_array(value) {
        return Err(wrong_type(PARAM, "an array of messages", value));
    }
    let (mut messages, mut bytes) = (Vec::new(), 0);
    let most = model.handle.ctx();
    each(value, |i, item| {
        // Templates write something of every message.
        if i == most {
            let message = format!("{PARAM} has more entries than the context has tokens, which is {most}");
            return Err(ApiError::param(PARAM, "context_length_exceeded", message));
        }
        let message = message(item, &format!("{PARAM}[{i}]"), leniency)?;
        bytes += message.content.len();
        messages.push(message);
        model.check_length(bytes, PARAM)
    })?;
    if messages.is_empty() {
        return Err(ApiError::param(PARAM, "invalid_value", "messages is empty; at least one is needed"));
    }
    Ok(messages)
}

fn message(value: Raw, path: &str, leniency: &mut Leniency) -> Result<Message, ApiError> {
    let mut fields = Fields::of(value, path)?;
    let role = fields.string("role")?;
    let role = match fields.need("role", role)?.as_str() {
        // What OpenAI's newer models call the system's role; templates know the old name.
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        other => {
            let shown = crate::fields::shortened(other);
            let message =
                format!("a message's role can be system, developer, user or assistant, not {shown:?}");
            return Err(ApiError::param(fields.path("role"), "unsupported_value", message));
        }
    };
    let content = fields.take("content");
    let content = content_text(fields.need("content", content)?, &fields.path("content"), leniency)?;
    // Answers that are sent back carry it.
    leniency.only(&mut fields, "annotations", &[json!([])])?;
    let elsewhere = ["name", "tool_calls", "tool_call_id", "function_call", "audio", "refusal"];
    let elsewhere: Vec<String> = elsewhere.iter().map(|name| fields.path(name)).collect();
    let elsewhere: Vec<&str> = elsewhere.iter().map(String::as_str).collect();
    leniency.finish(fields, &elsewhere)?;
    Ok(Message::new(role, content))
}

/// A text, or parts that are all text.
fn content_text(value: Raw, path: &str, leniency: &mut Leniency) -> Result<String, ApiError> {
    const EXPECTED: &str = "a string or an array of parts";
    if is_string(value) {
        return string(value, path, EXPECTED);
    }
    if !is_array(value) {
        return Err(wrong_type(path, EXPECTED, value));
    }
    let mut text = String::new();
    each(value, |i, part| {
        let mut fields = Fields::of(part, &format!("{path}[{i}]"))?;
        let kind = fields.string("type")?;
        let kind = fields.need("type", kind)?;
        if kind != "text" {
            let shown = crate::fields::shortened(&kind);
            let message = format!("parts of type {shown:?} are not supported, only \"text\"");
            return Err(ApiError::param(fields.path("type"), "unsupported_value", message));
        }
        let part = fields.string("text")?;
        text.push_str(&fields.need("text", part)?);
        leniency.finish(fields, &[])
    })?;
    Ok(text)
}
