//! `/tokenize` and `/detokenize`: as llama.cpp's server has them.

use std::fmt::Write as _;
use std::sync::Arc;

use exotherm_tokenizer::Specials;
use serde_json::{Value, json};

use crate::body::Holds;
use crate::error::ApiError;
use crate::fields::{Fields, each, integer, is_array, wrong_type};
use crate::model::{Models, ServedModel};
use crate::params::Leniency;

/// Bytes of a text that is told.
const MOST_TEXT: usize = 8 << 20;

/// A reply, and the parameters that were left out of account for it.
pub struct Said {
    pub text: String,
    pub ignored: Vec<String>,
}

impl Holds for Said {
    fn held_bytes(&self) -> usize {
        self.text.capacity()
    }
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
    leniency.only(&mut fields, "with_pieces", &[json!(false)])?;
    leniency.finish(fields, &[])?;
    let ids = model.tokenizer.encode(&content, specials);
    let ids = ids.map_err(|error| ApiError::from_tokenizer(&error, "content"))?;
    let mut text = String::from(r#"{"tokens":["#);
    for (i, id) in ids.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{id}");
    }
    Ok(Said { text: text + "]}", ignored: leniency.ignored })
}

pub fn detokenize(body: &[u8], models: &Models, lenient: bool) -> Result<Said, ApiError> {
    const TOKENS: &str = "tokens";
    let mut leniency = Leniency::new(lenient);
    let mut fields = Fields::parse(body)?;
    let model = model(&mut fields, models)?;
    let tokens = fields.take(TOKENS);
    let tokens = fields.need(TOKENS, tokens)?;
    if !is_array(tokens) {
        return Err(wrong_type(TOKENS, "an array of token ids", tokens));
    }
    leniency.finish(fields, &[])?;
    let last = model.tokenizer.vocab_size().saturating_sub(1) as u64;
    let (mut ids, mut bytes) = (Vec::new(), 0);
    each(tokens, |i, token| {
        let id = integer(token, &format!("{TOKENS}[{i}]"), 0, last)? as u32;
        bytes += model.tokenizer.piece(id).map_or(0, <[u8]>::len);
        if bytes > MOST_TEXT {
            let message =
                format!("the text of {TOKENS} has more than {MOST_TEXT} bytes, the most that is told");
            return Err(ApiError::param(TOKENS, "invalid_value", message));
        }
        ids.push(id);
        Ok(())
    })?;
    let text = model.tokenizer.decode(&ids, true);
    let text = text.map_err(|error| ApiError::from_tokenizer(&error, TOKENS))?;
    Ok(Said { text: format!(r#"{{"content":{}}}"#, Value::from(text)), ignored: leniency.ignored })
}
