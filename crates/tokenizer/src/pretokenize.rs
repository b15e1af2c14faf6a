//! The pre-tokenizer of a tokenizer.json, with the patterns on our own splitter.
//!
//! The `tokenizers` crate runs them on a backtracking engine and, when that gives up, silently leaves the rest of the
//! text in one word. Here the usual patterns run in linear time, and one that gives up is an error.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::Value;
use tokenizers::pattern::{Invert, Pattern};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Offsets, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

use crate::TokenizerError;
use crate::split::Splitter;

/// The pattern that `ByteLevel` uses when it is asked to cut words itself.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

pub(crate) enum PreTok {
    Sequence(Vec<PreTok>),
    Split { splitter: Splitter, behavior: SplitDelimiterBehavior, invert: bool },
    ByteLevel { splitter: Splitter, space_prefix: bool },
    Other(Box<PreTokenizerWrapper>),
}

impl PreTok {
    fn from_json(json: &Value) -> Result<Self, TokenizerError> {
        let malformed = |what: &str| TokenizerError::Malformed(format!("the pre-tokenizer {what}"));
        let flag = |key: &str, default: bool| json.get(key).and_then(Value::as_bool).unwrap_or(default);
        match json.get("type").and_then(Value::as_str) {
            Some("Sequence") => {
                let parts = json.get("pretokenizers").and_then(Value::as_array);
                let parts = parts.ok_or_else(|| malformed("Sequence has no list"))?;
                Ok(PreTok::Sequence(parts.iter().map(Self::from_json).collect::<Result<_, _>>()?))
            }
            Some("Split") => {
                let pattern = json.get("pattern").ok_or_else(|| malformed("Split has no pattern"))?;
                let splitter = match (pattern.get("Regex"), pattern.get("String")) {
                    (Some(Value::String(regex)), None) => Splitter::new(regex)?,
                    (None, Some(Value::String(text))) => Splitter::new(&regex::escape(text))?,
                    _ => return Err(malformed("Split has neither Regex nor String")),
                };
                let behavior = json.get("behavior").cloned().unwrap_or_default();
                let behavior =
                    serde_json::from_value(behavior).map_err(|e| malformed(&format!("Split: {e}")))?;
                Ok(PreTok::Split { splitter, behavior, invert: flag("invert", false) })
            }
            Some("ByteLevel") if flag("use_regex", true) => Ok(PreTok::ByteLevel {
                splitter: Splitter::new(GPT2)?,
                space_prefix: flag("add_prefix_space", false),
            }),
            _ => serde_json::from_value(json.clone())
                .map(|other| PreTok::Other(Box::new(other)))
                .map_err(|e| malformed(&e.to_string())),
        }
    }
}

impl<'de> Deserialize<'de> for PreTok {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl PreTokenizer for PreTok {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            PreTok::Sequence(parts) => parts.iter().try_for_each(|part| part.pre_tokenize(text)),
            PreTok::Split { splitter, behavior, invert: false } => {
                text.split(|_, part| part.split(splitter, *behavior))
            }
            PreTok::Split { splitter, behavior, invert: true } => {
                text.split(|_, part| part.split(Invert(splitter), *behavior))
            }
            PreTok::ByteLevel { splitter, space_prefix } => {
                text.split(|_, mut part| {
                    if *space_prefix && !part.get().starts_with(' ') {
                        part.prepend(" ");
                    }
                    part.split(splitter, SplitDelimiterBehavior::Isolated)
                })?;
                ByteLevel::new(false, false, false).pre_tokenize(text)
            }
            PreTok::Other(other) => other.pre_tokenize(text),
        }
    }
}

impl Pattern for &Splitter {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut done = 0;
        let mut parts = Vec::new();
        self.matches(inside, |found| {
            if found.start > done {
                parts.push(((done, found.start), false));
            }
            parts.push(((found.start, found.end), true));
            done = found.end;
        })?;
        if done < inside.len() {
            parts.push(((done, inside.len()), false));
        }
        Ok(parts)
    }
}
