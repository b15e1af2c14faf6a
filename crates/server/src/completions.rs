//! `/v1/completions`.

use exotherm_tokenizer::Specials;

use crate::answer::{Job, Kind};
use crate::error::ApiError;
use crate::fields::{Fields, Raw, count, each, is_array, is_number, is_string, string, token, wrong_type};
use crate::generate::Prompt;
use crate::model::{Models, ServedModel};
use crate::params::{Leniency, MOST_LOGPROBS, Params};

/// Parameters of OpenAI's that are not supported here.
const UNSUPPORTED: &[&str] = &["suffix"];
const MOST_BEST_OF: usize = 20;
const PROMPT: &str = "prompt";

pub fn read(body: &[u8], models: &Models, lenient: bool) -> Result<Job, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut leniency = Leniency::new(lenient);
    let mut params = Params::read(&mut fields, models, &mut leniency, false)?;
    let prompt = fields.take(PROMPT);
    let prompt = fields.need(PROMPT, prompt)?;
    let echo = fields.bool("echo")?.unwrap_or(false);
    params.best_of = best_of(&mut fields, &params)?;
    params.logprobs = fields.count("logprobs", 0, MOST_LOGPROBS)?.map(|top| top as u8);
    params.logs_prompt = echo && params.logprobs.is_some();
    leniency.finish(fields, UNSUPPORTED)?;
    let most = params.model.handle.most_open();
    let prompts = prompts(prompt, &params.model, echo, PROMPT, most)?;
    Ok(Job { params, kind: Kind::Completion, prompts: prompts.into(), ignored: leniency.ignored })
}

/// So many answers are made, and the best `n` of them told.
fn best_of(fields: &mut Fields, params: &Params) -> Result<usize, ApiError> {
    const BEST_OF: &str = "best_of";
    let best_of = fields.count(BEST_OF, 1, MOST_BEST_OF)?.unwrap_or(params.n);
    if best_of < params.n {
        let message = format!("best_of is {best_of}, it must be n, which is {}, or more", params.n);
        return Err(ApiError::param(BEST_OF, "invalid_value", message));
    }
    if best_of > params.n && params.stream {
        let message =
            "which answers are the best is known only when they are finished: best_of cannot be streamed";
        return Err(ApiError::param(BEST_OF, "invalid_value", message));
    }
    Ok(best_of)
}

/// A text, a list of texts, a list of tokens, or a list of lists of tokens; `most` of them at most.
pub fn prompts(
    value: Raw,
    model: &ServedModel,
    echo: bool,
    param: &str,
    most: usize,
) -> Result<Vec<Prompt>, ApiError> {
    if is_string(value) {
        return Ok(vec![of_text(value, model, echo, param)?]);
    }
    if !is_array(value) {
        return Err(wrong_type(param, "a string, tokens or a list of these", value));
    }
    let (mut of_numbers, entries) = (false, count(value)?);
    if entries == 0 {
        return Err(ApiError::param(param, "invalid_value", format!("{param} is empty")));
    }
    let mut prompts = Vec::new();
    each(value, |i, item| {
        of_numbers |= i == 0 && is_number(item);
        if of_numbers {
            return Ok(());
        }
        // More than can be made are refused before the work.
        if entries > most {
            let message = format!("{param} has {entries} entries, {most} are the most");
            return Err(ApiError::param(param, "invalid_value", message));
        }
        let path = format!("{param}[{i}]");
        prompts.push(match () {
            () if is_string(item) => of_text(item, model, echo, &path)?,
            () if is_array(item) => of_tokens(item, model, echo, &path)?,
            () => return Err(wrong_type(&path, "a string or a list of tokens", item)),
        });
        Ok(())
    })?;
    if of_numbers {
        prompts.push(of_tokens(value, model, echo, param)?);
    }
    Ok(prompts)
}

/// What an entry is called, of so many that a parameter has.
pub fn entry_name(param: &str, index: usize, count: usize) -> String {
    if count > 1 { format!("{param}[{index}]") } else { param.to_string() }
}

/// The text is the model's whole input, so control tokens written out in it count.
fn of_text(text: Raw, model: &ServedModel, echo: bool, path: &str) -> Result<Prompt, ApiError> {
    let text = string(text, path, "a string")?;
    model.check_length(text.len(), path)?;
    let ids = model.tokenizer.encode(&text, Specials { add: true, parse: true });
    let ids = ids.map_err(|error| ApiError::from_tokenizer(&error, path))?;
    Ok(Prompt { ids, echo: if echo { text } else { String::new() } })
}

fn of_tokens(tokens: Raw, model: &ServedModel, echo: bool, path: &str) -> Result<Prompt, ApiError> {
    let (last, ctx) = (model.handle.vocab().saturating_sub(1) as u64, model.handle.ctx());
    let mut ids = Vec::new();
    each(tokens, |i, id| {
        if i == ctx {
            let message = format!("{path} has more tokens than the context, which is {ctx}");
            return Err(ApiError::param(path, "context_length_exceeded", message));
        }
        ids.push(token(id, path, i, last)?);
        Ok(())
    })?;
    // The same text as where it is given as one: what is put around a text was not written by anybody.
    let written = if echo { model.tokenizer.without_added(&ids) } else { &[] };
    let text = model.tokenizer.decode(written, true);
    let echo = text.map_err(|error| ApiError::from_tokenizer(&error, path))?;
    Ok(Prompt { ids, echo })
}
