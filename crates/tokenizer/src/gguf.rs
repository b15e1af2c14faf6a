//! A tokenizer from GGUF metadata.

use std::sync::OnceLock;

use crate::bpe::{self, Bpe};
use crate::pieces::{Kind, Pieces};
use crate::rwkv::{self, Rwkv};
use crate::specials::{SpecialTokens, Written};
use crate::spm::{self, Spm};
use crate::{ChatTemplate, Engine, Tokenizer, TokenizerError, end};

/// The `tokenizer.*` metadata of a GGUF file. Everything long is borrowed, so it can point into the mapped file.
#[derive(Debug, Clone, Default)]
pub struct GgufVocab<'a> {
    /// `tokenizer.ggml.model`: `gpt2`, `llama` or `rwkv`.
    pub model: String,
    /// `tokenizer.ggml.pre`.
    pub pre: Option<String>,
    /// `general.name`. Phi-3 is known by it: its special tokens swallow the white space after them.
    pub name: Option<String>,
    pub tokens: Vec<&'a [u8]>,
    pub scores: Vec<f32>,
    pub types: Vec<i32>,
    pub merges: Vec<&'a [u8]>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unk: Option<u32>,
    pub sep: Option<u32>,
    pub pad: Option<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    pub remove_extra_whitespaces: Option<bool>,
    pub chat_template: Option<String>,
}

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes.
    pub fn from_gguf(vocab: GgufVocab<'_>) -> Result<Self, TokenizerError> {
        check(&vocab)?;
        let kinds = kinds(&vocab);
        let pieces = pieces(&vocab, &kinds)?;
        let mut defaults = (None, None, false);
        let engine = match vocab.model.as_str() {
            "gpt2" => {
                let pre = crate::pre::by_name(vocab.pre.as_deref())?;
                defaults.2 = pre.add_bos;
                Engine::Bpe(Bpe::new(&pieces, &vocab.merges, pre))
            }
            "llama" => {
                let in_range = |id: u32| Some(id).filter(|&id| (id as usize) < vocab.tokens.len());
                defaults = (in_range(1), in_range(2), true);
                let unknown = vocab.unk.filter(|&id| (id as usize) < vocab.tokens.len()).or(in_range(0));
                Engine::Spm(Spm::new(&pieces, &vocab.scores, unknown, vocab.add_space_prefix.unwrap_or(true)))
            }
            _ => Engine::Rwkv(Rwkv::new(&pieces)),
        };
        let bos = special_id(&vocab, "bos", vocab.bos)?.or(defaults.0);
        let eos = special_id(&vocab, "eos", vocab.eos)?.or(defaults.1);
        let eot = special_id(&vocab, "eot", vocab.eot)?;
        let eom = special_id(&vocab, "eom", vocab.eom)?;
        let specials = SpecialTokens::new(&written(&vocab, &kinds))?;
        let is_control = |id: u32| vocab.types.is_empty() || pieces.kind(id) == Some(Kind::Control);
        let mut end_of_generation: Vec<u32> = [eos, eot, eom].into_iter().flatten().collect();
        end::add_well_known(&mut end_of_generation, |name| {
            let id = vocab.tokens.iter().position(|token| *token == name.as_bytes())? as u32;
            Some(id).filter(|&id| is_control(id))
        });
        Ok(Tokenizer {
            prefix: added("bos", vocab.add_bos, defaults.2, bos)?,
            suffix: added("eos", vocab.add_eos, false, eos)?,
            strips_first_space: matches!(&engine, Engine::Spm(spm) if spm.space_prefix),
            guard: OnceLock::new(),
            bos,
            eos,
            end_of_generation,
            template: vocab.chat_template.as_deref().map(ChatTemplate::compile),
            pieces,
            engine,
            specials,
        })
    }
}

fn check(vocab: &GgufVocab<'_>) -> Result<(), TokenizerError> {
    if !matches!(vocab.model.as_str(), "gpt2" | "llama" | "rwkv") {
        return Err(TokenizerError::UnknownModel(vocab.model.clone()));
    }
    let tokens = vocab.tokens.len();
    let malformed = |what: String| Err(TokenizerError::Malformed(what));
    if tokens == 0 {
        return malformed("tokenizer.ggml.tokens is empty".into());
    }
    if u32::try_from(tokens).is_err() {
        return malformed(format!("{tokens} tokens are more than ids can count"));
    }
    if !vocab.types.is_empty() && vocab.types.len() < tokens {
        return malformed(format!("{tokens} tokens but only {} token types", vocab.types.len()));
    }
    if !vocab.scores.is_empty() && vocab.scores.len() < tokens {
        return malformed(format!("{tokens} tokens but only {} scores", vocab.scores.len()));
    }
    if vocab.model == "gpt2" && vocab.merges.is_empty() {
        return malformed("a gpt2 tokenizer needs tokenizer.ggml.merges".into());
    }
    if vocab.model == "llama" && vocab.scores.is_empty() {
        return malformed("a llama tokenizer needs tokenizer.ggml.scores".into());
    }
    if vocab.remove_extra_whitespaces == Some(true) {
        return Err(TokenizerError::Unsupported("tokenizer.ggml.remove_extra_whitespaces".into()));
    }
    Ok(())
}

fn kinds(vocab: &GgufVocab<'_>) -> Vec<Kind> {
    (0..vocab.tokens.len())
        .map(|id| vocab.types.get(id).map_or(Kind::Normal, |&value| Kind::from_gguf(value)))
        .collect()
}

fn pieces(vocab: &GgufVocab<'_>, kinds: &[Kind]) -> Result<Pieces, TokenizerError> {
    let mut pieces = Pieces::with_capacity(vocab.tokens.len());
    for (id, (token, &kind)) in vocab.tokens.iter().zip(kinds).enumerate() {
        let piece = match vocab.model.as_str() {
            "gpt2" => bpe::piece(token, kind),
            "llama" => spm::piece(token, kind),
            _ => rwkv::unescape_gguf(token).ok_or_else(|| {
                TokenizerError::Malformed(format!("token {id} ends within an escape sequence"))
            })?,
        };
        pieces
            .push(&piece, kind)
            .ok_or_else(|| TokenizerError::Malformed("the tokens pass 4 GiB together".into()))?;
    }
    pieces.shrink();
    Ok(pieces)
}

/// An id that a file gives must be in the vocabulary; some files write "none" as 2^32 - 1.
fn special_id(vocab: &GgufVocab<'_>, what: &str, id: Option<u32>) -> Result<Option<u32>, TokenizerError> {
    match id {
        Some(id) if id != u32::MAX && id as usize >= vocab.tokens.len() => Err(TokenizerError::Malformed(
            format!("the {what} token is {id}, outside of the vocabulary of {} tokens", vocab.tokens.len()),
        )),
        id => Ok(id.filter(|&id| id != u32::MAX)),
    }
}

/// The token that goes before or after every text. A file that asks for one must name it.
fn added(
    what: &str,
    asked: Option<bool>,
    default: bool,
    id: Option<u32>,
) -> Result<Vec<u32>, TokenizerError> {
    match (asked.unwrap_or(default), id) {
        (true, Some(id)) => Ok(vec![id]),
        (true, None) if asked.is_some() => Err(TokenizerError::Malformed(format!(
            "tokenizer.ggml.add_{what}_token is true, but there is no tokenizer.ggml.{what}_token_id"
        ))),
        _ => Ok(Vec::new()),
    }
}

fn written(vocab: &GgufVocab<'_>, kinds: &[Kind]) -> Vec<Written> {
    let is_phi3 = vocab.name.as_deref().is_some_and(|name| {
        let name = name.to_lowercase();
        name.contains("phi-3") || name.contains("phi3")
    });
    vocab
        .tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (_, kind))| matches!(kind, Kind::Control | Kind::UserDefined | Kind::Unknown))
        .map(|(id, (token, kind))| Written {
            id: id as u32,
            text: token.to_vec(),
            control: kind.is_special(),
            strips_right: is_phi3 && !matches!(*token, b"<unk>" | b"<s>" | b"<|endoftext|>"),
        })
        .collect()
}
