//! The parameters that chats and completions share.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, Response};
use exotherm_engine::Sampling;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::{self, Fields, Raw};
use crate::ids;
use crate::model::{Models, ServedModel};

/// As many choices as OpenAI allows.
pub const MOST_CHOICES: usize = 128;
const MOST_STOPS: usize = 16;
const MOST_STOP_CHARS: usize = 1024;
/// Levels of the scheduler either way. Each is worth 64 steps: with many of them one client could hold all others off.
const MOST_PRIORITY: i64 = 4;
/// Of the likeliest tokens beside each token.
pub const MOST_LOGPROBS: usize = exotherm_engine::sampling::MAX_LOGPROBS;
/// OpenAI's default for completions.
const COMPLETION_TOKENS: usize = 16;

/// Ignored parameters that a header names.
const MOST_NAMED: usize = 16;

/// What to do about parameters that are not known or not supported.
pub struct Leniency {
    pub lenient: bool,
    /// Those that were left out of account, as many as are named.
    pub ignored: Vec<String>,
}

impl Leniency {
    pub fn new(lenient: bool) -> Leniency {
        Leniency { lenient, ignored: Vec::new() }
    }

    fn complain(&mut self, error: ApiError) -> Result<(), ApiError> {
        match &error.param {
            Some(param) if self.lenient => {
                match self.ignored.len() {
                    ..MOST_NAMED => self.ignored.push(fields::shortened(param)),
                    MOST_NAMED => self.ignored.push("and others".into()),
                    _ => {}
                }
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// A parameter that clients send and that changes nothing, as long as it is one of these values.
    pub fn only(&mut self, fields: &mut Fields, name: &str, allowed: &[Value]) -> Result<(), ApiError> {
        fields.only(name, allowed).or_else(|error| self.complain(error))
    }

    /// What was not read: parameters that exist elsewhere, and those that exist nowhere.
    pub fn finish(&mut self, fields: Fields, unsupported: &[&str]) -> Result<(), ApiError> {
        for (path, is_said) in fields.rest() {
            match unsupported.contains(&path.as_str()) {
                true if is_said => self.complain(fields::unsupported(&path))?,
                // Clients that know it say so that they do not want it.
                true => {}
                false => self.complain(fields::unknown(&path))?,
            }
        }
        Ok(())
    }
}

/// Says in a header which parameters were left out of account.
pub fn with_warning(mut response: Response<Body>, ignored: &[String]) -> Response<Body> {
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    let text: String = format!("ignored parameters: {}", ignored.join(", ")).chars().map(plain).collect();
    if let (false, Ok(text)) = (ignored.is_empty(), HeaderValue::from_str(&text)) {
        response.headers_mut().insert("x-exotherm-warning", text);
    }
    response
}

/// How an answer is to be made, whatever it answers.
pub struct Params {
    pub model: Arc<ServedModel>,
    pub sampling: Sampling,
    /// `None`: as many as fit.
    pub max_tokens: Option<usize>,
    pub stops: Vec<String>,
    /// Whether the answer goes on with its prompt's text; a chat's is a text of its own.
    pub continues: bool,
    pub ignore_eos: bool,
    pub n: usize,
    /// As many are made, and the `n` best of them told.
    pub best_of: usize,
    /// How many of the likeliest tokens are told beside each token; `None`: nothing is told of either.
    pub logprobs: Option<u8>,
    /// Whether the same is told of the prompt's tokens, with the prompt.
    pub logs_prompt: bool,
    pub priority: i32,
    pub stream: bool,
    pub include_usage: bool,
    pub receipt: bool,
}

impl Params {
    pub fn read(
        fields: &mut Fields,
        models: &Models,
        leniency: &mut Leniency,
        is_chat: bool,
    ) -> Result<Params, ApiError> {
        let model = fields.string("model")?;
        let model = Arc::clone(models.choose(model.as_deref())?);
        let sampling = sampling(fields, &model)?;
        let max_tokens = max_tokens(fields, model.handle.ctx(), is_chat)?;
        let stops = stops(fields)?;
        let n = fields.count("n", 1, MOST_CHOICES)?.unwrap_or(1);
        let stream = fields.bool("stream")?.unwrap_or(false);
        let include_usage = stream_options(fields, leniency, stream)?;
        let params = Params {
            model,
            sampling,
            max_tokens,
            stops,
            continues: !is_chat,
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            n,
            best_of: n,
            logprobs: None,
            logs_prompt: false,
            priority: priority(fields)?,
            stream,
            include_usage,
            receipt: fields.bool("receipt")?.unwrap_or(false),
        };
        benign(fields, leniency)?;
        Ok(params)
    }
}

/// As vLLM has it: the lower, the earlier.
pub fn priority(fields: &mut Fields) -> Result<i32, ApiError> {
    let priority = fields.integer("priority", -MOST_PRIORITY, MOST_PRIORITY as u64)?;
    // The engine counts levels the other way round.
    Ok(priority.map_or(0, |priority| -priority as i32))
}

fn sampling(fields: &mut Fields, model: &ServedModel) -> Result<Sampling, ApiError> {
    let top_p = fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0);
    let seed = fields.integer("seed", i64::MIN, u64::MAX)?;
    let repeat_penalty = fields.number("repetition_penalty", 0.01, 100.0)?.unwrap_or(1.0);
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0),
        // -1 and 0: all, as elsewhere.
        top_k: fields.integer("top_k", -1, u64::from(u32::MAX))?.map_or(0, |k| k.max(0) as usize),
        // None at all is as few as there can be: the likeliest.
        top_p: top_p.max(f32::MIN_POSITIVE),
        min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
        repeat_penalty,
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        logit_bias: logit_bias(fields, model.handle.vocab())?,
        // Rows beyond have no text.
        vocab: model.tokenizer.vocab_size(),
        // A negative seed is a seed like any other.
        seed: seed.map_or_else(ids::seed, |seed| seed as u64),
    })
}

/// Tokens that a request may name in its bias: as many as other servers take, several times over.
const MOST_BIASED: usize = 1024;

/// Token ids, as names of fields, and what is added to their logits.
fn logit_bias(fields: &mut Fields, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let path = fields.path("logit_bias");
    let Some(value) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    let members = fields::object(value, &path, MOST_BIASED).map_err(|error| match error.code {
        // Names of tokens are no names of parameters.
        Some("invalid_value") => ApiError { param: Some(path.clone()), ..error },
        _ => error,
    })?;
    let entry = |(token, bias): (Cow<str>, Raw)| {
        // In one spelling only, so that no token is named twice.
        let id = token.parse().ok().filter(|id: &u32| (*id as usize) < vocab && id.to_string() == token);
        let id = id.ok_or_else(|| {
            let shown = fields::shortened(&token);
            let message =
                format!("{path} names {shown:?}; tokens are numbers from 0 to {}", vocab.saturating_sub(1));
            ApiError::param(&path, "invalid_value", message)
        })?;
        Ok((id, fields::number(bias, &path, -100.0, 100.0)?))
    };
    members.into_iter().map(entry).collect()
}

fn max_tokens(fields: &mut Fields, ctx: usize, is_chat: bool) -> Result<Option<usize>, ApiError> {
    // A prompt may be all that is wanted; a chat is there for its answer.
    let old = fields.count("max_tokens", usize::from(is_chat), ctx)?;
    if !is_chat {
        return Ok(Some(old.unwrap_or(COMPLETION_TOKENS)));
    }
    match (old, fields.count("max_completion_tokens", 1, ctx)?) {
        (Some(old), Some(new)) if old != new => {
            let message = "max_tokens and max_completion_tokens contradict each other; give one of them";
            Err(ApiError::param("max_tokens", "invalid_value", message))
        }
        (old, new) => Ok(new.or(old)),
    }
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let path = fields.path("stop");
    let text = |stop: Raw| {
        let text = fields::string(stop, &path, "a string or a list of strings")?;
        let chars = text.chars().count();
        if !(1..=MOST_STOP_CHARS).contains(&chars) {
            let message = format!("a stop string has 1 to {MOST_STOP_CHARS} characters, not {chars}");
            return Err(ApiError::param(&path, "invalid_value", message));
        }
        Ok(text)
    };
    let mut stops = Vec::new();
    match fields.take("stop") {
        None => {}
        Some(list) if fields::is_array(list) => fields::each(list, |i, stop| {
            if i == MOST_STOPS {
                let message = format!("{path} has more than {MOST_STOPS} strings, the most there can be");
                return Err(ApiError::param(&path, "invalid_value", message));
            }
            stops.push(text(stop)?);
            Ok(())
        })?,
        Some(one) => stops.push(text(one)?),
    }
    Ok(stops)
}

/// Whether the last chunk of a stream tells the usage.
fn stream_options(fields: &mut Fields, leniency: &mut Leniency, stream: bool) -> Result<bool, ApiError> {
    let path = fields.path("stream_options");
    let Some(value) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        let message = format!("{path} is for streams: give it together with \"stream\": true");
        return Err(ApiError::param(path, "invalid_value", message));
    }
    let mut options = Fields::of(value, &path)?;
    let include = options.bool("include_usage")?.unwrap_or(false);
    leniency.only(&mut options, "include_obfuscation", &[json!(false)])?;
    leniency.finish(options, &[])?;
    Ok(include)
}

/// As many as OpenAI allows, and as long.
const MOST_METADATA: usize = 16;
const MOST_METADATA_NAME: usize = 64;
const MOST_METADATA_TEXT: usize = 512;

/// Names and texts that a client keeps beside its request.
fn metadata(fields: &mut Fields) -> Result<(), ApiError> {
    let path = fields.path("metadata");
    let Some(value) = fields.take("metadata") else { return Ok(()) };
    for (name, text) in fields::object(value, &path, MOST_METADATA)? {
        let path = format!("{path}.{}", fields::shortened(&name));
        let text = fields::string(text, &path, "a string")?;
        for (what, text, most) in [("name", &*name, MOST_METADATA_NAME), ("text", &text, MOST_METADATA_TEXT)]
        {
            let chars = text.chars().count();
            if chars > most {
                let message = format!("the {what} of {path} has {chars} characters, {most} are the most");
                return Err(ApiError::param(path, "invalid_value", message));
            }
        }
    }
    Ok(())
}

/// What clients send along and what changes no answer.
fn benign(fields: &mut Fields, leniency: &mut Leniency) -> Result<(), ApiError> {
    for name in ["user", "safety_identifier", "prompt_cache_key"] {
        fields.string(name)?;
    }
    metadata(fields)?;
    leniency.only(fields, "response_format", &[json!({ "type": "text" })])?;
    leniency.only(fields, "store", &[json!(false)])?;
    leniency.only(fields, "service_tier", &[json!("auto"), json!("default")])
}
