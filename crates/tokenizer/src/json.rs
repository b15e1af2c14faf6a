//! A tokenizer from tokenizer.json, run by the `tokenizers` crate.

use std::collections::HashMap;
use std::sync::{OnceLock, PoisonError, RwLock};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerImpl, models::bpe::BPE,
};

use crate::merge::NONE;
use crate::pieces::{Kind, Pieces};
use crate::precheck::ModelHead;
use crate::pretokenize::PreTok;
use crate::specials::SpecialTokens;
use crate::{ChatTemplate, Engine, Tokenizer, TokenizerError, bytelevel, end, spm};

type Inner = TokenizerImpl<ModelWrapper, NormalizerWrapper, PreTok, PostProcessorWrapper, DecoderWrapper>;

pub(crate) struct Json {
    /// Whether control tokens are read is a state of the crate's tokenizer, not an argument. Callers that agree on it
    /// share the lock.
    inner: RwLock<Inner>,
    bytes: [u32; 256],
}

/// The configuration files that lie beside a tokenizer.json.
#[derive(Debug, Default)]
pub struct Companions {
    pub tokenizer_config: Option<Value>,
    pub special_tokens_map: Option<Value>,
    pub generation_config: Option<Value>,
    pub model_config: Option<Value>,
    /// A chat template of its own file, which wins over the one in `tokenizer_config`.
    pub chat_template: Option<String>,
}

/// The parts of a tokenizer.json that are read here as well.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    added_tokens: Vec<Added>,
    decoder: Option<Value>,
    normalizer: Option<Value>,
    #[serde(default)]
    model: ModelHead,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

/// How the text of a token stands for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    ByteLevel,
    Escaped {
        byte_fallback: bool,
    },
    /// Words, with spaces between them.
    Words,
}

impl Json {
    pub(crate) fn encode(&self, text: &str, parse: bool, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        {
            let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
            if inner.get_encode_special_tokens() != parse {
                return encode(&inner, text, ids);
            }
        }
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.set_encode_special_tokens(!parse);
        encode(&inner, text, ids)
    }

    pub(crate) fn byte(&self, byte: u8) -> Option<u32> {
        Some(self.bytes[byte as usize]).filter(|&id| id != NONE)
    }
}

fn encode(inner: &Inner, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
    let encoding = inner.encode_fast(text, false).map_err(|e| TokenizerError::Encode(e.to_string()))?;
    ids.extend_from_slice(encoding.get_ids());
    Ok(())
}

impl Tokenizer {
    /// Builds the tokenizer of a tokenizer.json and the files beside it.
    pub fn from_tokenizer_json(json: &[u8], companions: &Companions) -> Result<Self, TokenizerError> {
        let malformed = |e: serde_json::Error| TokenizerError::Malformed(format!("tokenizer.json: {e}"));
        let head: Head = serde_json::from_slice(json).map_err(malformed)?;
        head.model.check()?;
        refuse_backtracking(head.normalizer.as_ref())?;
        let (spelling, strips_first_space) = spelling(head.decoder.as_ref())?;
        let mut inner: Inner = serde_json::from_slice(json).map_err(malformed)?;
        inner.with_truncation(None).map_err(|e| TokenizerError::Malformed(e.to_string()))?;
        inner.with_padding(None);
        if let ModelWrapper::BPE(BPE { dropout: Some(dropout), .. }) = inner.get_model()
            && *dropout > 0.0
        {
            return Err(TokenizerError::Unsupported(format!("the dropout {dropout}")));
        }
        for token in &head.added_tokens {
            if inner.token_to_id(&token.content) != Some(token.id) {
                return Err(TokenizerError::Malformed(format!(
                    "the added token {:?} cannot have the id {}",
                    token.content, token.id
                )));
            }
        }
        let pieces = pieces(&inner, &head.added_tokens, spelling)?;
        let (prefix, suffix) = added_around(&inner)?;
        let ends = Ends::read(companions, &inner, &head.added_tokens, &prefix);
        let (prefix, suffix) = ends.adjust(companions, prefix, suffix);
        let bytes = byte_tokens(&pieces, spelling);
        Ok(Tokenizer {
            pieces,
            engine: Engine::Json(Box::new(Json { inner: RwLock::new(inner), bytes })),
            specials: SpecialTokens::new(&[])?,
            prefix,
            suffix,
            bos: ends.bos,
            eos: ends.eos,
            end_of_generation: ends.all,
            template: template(companions).map(|source| ChatTemplate::compile(&source)),
            strips_first_space,
            guard: OnceLock::new(),
        })
    }
}

/// The crate ignores a pattern that gives up, and so would silently normalise half a text.
fn refuse_backtracking(normalizer: Option<&Value>) -> Result<(), TokenizerError> {
    let Some(normalizer) = normalizer else { return Ok(()) };
    if let Some(pattern) = normalizer.pointer("/pattern/Regex").and_then(Value::as_str)
        && regex::Regex::new(pattern).is_err()
    {
        return Err(TokenizerError::Unsupported(format!("the pattern {pattern:?} in the normalizer")));
    }
    match normalizer.get("normalizers").and_then(Value::as_array) {
        Some(parts) => parts.iter().try_for_each(|part| refuse_backtracking(Some(part))),
        None => Ok(()),
    }
}

/// How tokens are spelled, and whether the first space of a text was put there by the tokenizer.
fn spelling(decoder: Option<&Value>) -> Result<(Spelling, bool), TokenizerError> {
    let Some(decoder) = decoder.filter(|decoder| !decoder.is_null()) else {
        return Ok((Spelling::Words, true));
    };
    let parts: Vec<&Value> = match decoder.get("decoders").and_then(Value::as_array) {
        Some(parts) => parts.iter().collect(),
        None => vec![decoder],
    };
    let mut found = (Spelling::Escaped { byte_fallback: false }, false);
    for part in parts {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("without a type");
        match kind {
            "ByteLevel" => found.0 = Spelling::ByteLevel,
            "ByteFallback" => found.0 = Spelling::Escaped { byte_fallback: true },
            "Fuse" => {}
            "Metaspace" => {
                let scheme = part.get("prepend_scheme").and_then(Value::as_str);
                let prefix = part.get("add_prefix_space").and_then(Value::as_bool);
                found.1 = scheme.map_or(prefix.unwrap_or(true), |scheme| scheme != "never");
            }
            "Replace" if is_space_escape(part) => {}
            "Strip" if part.get("content") == Some(&Value::from(" ")) => {
                found.1 = part.get("start").and_then(Value::as_u64).unwrap_or(0) > 0;
            }
            other => return Err(TokenizerError::Unsupported(format!("the decoder {other}"))),
        }
    }
    Ok(found)
}

fn is_space_escape(replace: &Value) -> bool {
    replace.pointer("/pattern/String") == Some(&Value::from("\u{2581}"))
        && replace.get("content") == Some(&Value::from(" "))
}

fn pieces(inner: &Inner, added: &[Added], spelling: Spelling) -> Result<Pieces, TokenizerError> {
    let count = inner.get_vocab_size(true);
    // Real vocabularies number their tokens without large gaps; one id of four billion must not cost us its memory.
    let limit = count.saturating_mul(2).saturating_add(1 << 16);
    let special: HashMap<u32, bool> = added.iter().map(|token| (token.id, token.special)).collect();
    let mut pieces = Pieces::with_capacity(count);
    let mut found = 0;
    while found < count {
        let id = pieces.len() as u32;
        if pieces.len() > limit {
            return Err(TokenizerError::Malformed("token ids are too sparse, or given twice".into()));
        }
        let (piece, kind) = match inner.id_to_token(id) {
            None => (Vec::new(), Kind::Unused),
            Some(token) => {
                found += 1;
                match special.get(&id) {
                    Some(true) => (token.into_bytes(), Kind::Control),
                    Some(_) => (spelled_added(&token, spelling), Kind::UserDefined),
                    None => spelled(&token, spelling),
                }
            }
        };
        pieces
            .push(&piece, kind)
            .ok_or_else(|| TokenizerError::Malformed("the tokens pass 4 GiB together".into()))?;
    }
    pieces.shrink();
    Ok(pieces)
}

fn spelled(token: &str, spelling: Spelling) -> (Vec<u8>, Kind) {
    match spelling {
        Spelling::ByteLevel => (bytelevel::decode(token.as_bytes()), Kind::Normal),
        Spelling::Escaped { byte_fallback } => match spm::byte_token(token.as_bytes()) {
            Some(byte) if byte_fallback => (vec![byte], Kind::Byte),
            _ => (token.replace('\u{2581}', " ").into_bytes(), Kind::Normal),
        },
        Spelling::Words => (format!(" {token}").into_bytes(), Kind::Normal),
    }
}

fn spelled_added(token: &str, spelling: Spelling) -> Vec<u8> {
    match spelling {
        Spelling::ByteLevel => token.as_bytes().to_vec(),
        _ => spelled(token, spelling).0,
    }
}

fn byte_tokens(pieces: &Pieces, spelling: Spelling) -> [u32; 256] {
    let wanted = match spelling {
        Spelling::ByteLevel => Kind::Normal,
        _ => Kind::Byte,
    };
    let mut bytes = [NONE; 256];
    for (id, piece, kind) in pieces.ids() {
        if let &[byte] = piece
            && kind == wanted
            && bytes[byte as usize] == NONE
        {
            bytes[byte as usize] = id;
        }
    }
    bytes
}

/// What the post-processor puts before and after a text.
fn added_around(inner: &Inner) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let encoding = inner.encode("a", true).map_err(|e| TokenizerError::Encode(e.to_string()))?;
    let (ids, mask) = (encoding.get_ids(), encoding.get_special_tokens_mask());
    let start = mask.iter().take_while(|&&special| special == 1).count();
    let end = mask.iter().rev().take_while(|&&special| special == 1).count();
    let suffix = ids.get(ids.len().saturating_sub(end).max(start)..).unwrap_or_default();
    Ok((ids.get(..start).unwrap_or_default().to_vec(), suffix.to_vec()))
}

struct Ends {
    bos: Option<u32>,
    eos: Option<u32>,
    all: Vec<u32>,
}

impl Ends {
    fn read(companions: &Companions, inner: &Inner, added: &[Added], prefix: &[u32]) -> Self {
        let named = |key: &str| {
            [&companions.tokenizer_config, &companions.special_tokens_map].into_iter().flatten().find_map(
                |file| {
                    let token = file.get(key)?;
                    inner.token_to_id(token.as_str().or_else(|| token.get("content")?.as_str())?)
                },
            )
        };
        let mut all = companions.end_ids();
        let eos = named("eos_token").or(all.first().copied());
        all.extend(eos);
        end::add_well_known(&mut all, |name| {
            added.iter().find(|token| token.special && token.content == name).map(|token| token.id)
        });
        Self { bos: named("bos_token").or(prefix.first().copied()), eos, all }
    }

    /// Llama-like tokenizers say in tokenizer_config.json, not in tokenizer.json, whether they add BOS and EOS.
    fn adjust(&self, companions: &Companions, prefix: Vec<u32>, suffix: Vec<u32>) -> (Vec<u32>, Vec<u32>) {
        let config = companions.tokenizer_config.as_ref();
        let class = config.and_then(|c| c.get("tokenizer_class")).and_then(Value::as_str).unwrap_or("");
        if !["Llama", "CodeLlama", "Gemma"].iter().any(|family| class.starts_with(family)) {
            return (prefix, suffix);
        }
        let apply = |key: &str, id: Option<u32>, now: Vec<u32>| match (
            config.and_then(|c| c.get(key)).and_then(Value::as_bool),
            id,
        ) {
            (Some(true), Some(id)) if now.is_empty() => vec![id],
            (Some(false), Some(id)) if now == [id] => Vec::new(),
            _ => now,
        };
        (apply("add_bos_token", self.bos, prefix), apply("add_eos_token", self.eos, suffix))
    }
}

impl Companions {
    /// `eos_token_id` of generation_config.json and config.json: a number or a list.
    pub(crate) fn end_ids(&self) -> Vec<u32> {
        let mut ids = Vec::new();
        let places = [
            self.generation_config.as_ref().and_then(|config| config.get("eos_token_id")),
            self.model_config.as_ref().and_then(|config| config.get("eos_token_id")),
            self.model_config.as_ref().and_then(|config| config.pointer("/text_config/eos_token_id")),
        ];
        for value in places.into_iter().flatten() {
            let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            ids.extend(list.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()));
        }
        ids
    }
}

/// The chat template: a text, or a list of named ones of which `default` is meant.
fn template(companions: &Companions) -> Option<String> {
    if companions.chat_template.is_some() {
        return companions.chat_template.clone();
    }
    let template = companions.tokenizer_config.as_ref()?.get("chat_template")?;
    let named = |list: &Vec<Value>| {
        let default = list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
        default.or(list.first())?.get("template").cloned()
    };
    match template {
        Value::Array(list) => named(list)?.as_str().map(str::to_owned),
        other => other.as_str().map(str::to_owned),
    }
}
