//! `/tokenize` and `/detokenize`: as llama.cpp's server has them.

use std::sync::Arc;

use exotherm_tokenizer::Specials;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::{Fields, integer, wrong_type};
use crate::model::{Models, ServedModel};
use crate::params::Leniency;

/// A reply, and the parameters that were left out of account for it.
pub struct Said {
    pub value: Value,
    pub ignored: Vec<String>,
}

fn model(fields: &mut Fields, models: &Models) -> Result<Arc<ServedModel>, ApiError> {
    let id = fields.string("model")?;
    models.choose(id.as_deref()).map(Arc::clone)
}

pub fn tokenize(body: &[u8], models: &Models, lenient: bool) -> Result<Said, ApiError> {
    let mut leniency = Leniency::new(lenient);
    let mut fields = Fields::parse(body)?;
    let model = model(&mut fields, models)?;
    let content = fields.string("content")?;
    let content = fields.need("content", content)?;
    let specials = Specials {
        add: fields.bool("add_special")?.unwrap_or(false),
        parse: fields.bool("parse_special")?.unwrap_or(true),
    };
    leniency.finish(fields, &["with_pieces"])?;
    let ids = model.tokenizer.encode(&content, specials);
    let ids = ids.map_err(|error| ApiError::from_tokenizer(&error, "content"))?;
    Ok(Said { value: json!({ "tokens": ids }), ignored: leniency.ignored })
}

pub fn detokenize(body: &[u8], models: &Models, lenient: bool) -> Result<Said, ApiError> {
    let mut leniency = Leniency::new(lenient);
    let mut fields = Fields::parse(body)?;
    let model = model(&mut fields, models)?;
    let tokens = fields.take("tokens");
    let tokens = match fields.need("tokens", tokens)? {
        Value::Array(tokens) => tokens,
        other => return Err(wrong_type("tokens", "an array of token ids", &other)),
    };
    leniency.finish(fields, &[])?;
    let last = model.tokenizer.vocab_size().saturating_sub(1) as u64;
    let token = |(i, value)| integer(value, &format!("tokens[{i}]"), 0, last).map(|id| id as u32);
    let ids: Vec<u32> = tokens.iter().enumerate().map(token).collect::<Result<_, _>>()?;
    let text = model.tokenizer.decode(&ids, true);
    let text = text.map_err(|error| ApiError::from_tokenizer(&error, "tokens"))?;
    Ok(Said { value: json!({ "content": text }), ignored: leniency.ignored })
}
