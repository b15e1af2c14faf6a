//! Tokenizers, chat templates and incremental detokenising.
//!
//! - [`Tokenizer::from_gguf`] builds byte-level BPE, SentencePiece's BPE or the RWKV world tokenizer from GGUF metadata.
//! - [`Tokenizer::from_dir`] reads a model's folder: `tokenizer.json` (through the `tokenizers` crate) or an RWKV
//!   vocabulary, with the configuration files that lie beside it.
//! - [`Stream`] turns tokens back into text as they come; [`StopMatcher`] watches that text for stop strings.
//! - [`ChatTemplate`] renders a conversation.
//!
//! A text a user wrote must not be able to write control tokens: [`Specials::parse`] is for rendered templates only.

mod bound;
mod bpe;
mod bytelevel;
mod dir;
mod end;
mod error;
mod gguf;
mod guard;
mod json;
mod merge;
mod pieces;
mod pre;
mod precheck;
mod pretokenize;
mod rwkv;
mod specials;
mod split;
mod spm;
mod stop;
mod stream;
mod template;

pub use error::TokenizerError;
pub use gguf::GgufVocab;
pub use json::Companions;
pub use stop::StopMatcher;
pub use stream::Stream;
pub use template::{ChatTemplate, Message};

use std::sync::OnceLock;

use pieces::Pieces;
use specials::{Fragment, SpecialTokens};

/// How special tokens take part in encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Specials {
    /// Put BOS before and EOS after the text where the model wants them.
    pub add: bool,
    /// Read control tokens that are written out in the text (`<|im_start|>`) as those tokens.
    pub parse: bool,
}

impl Specials {
    /// The text and nothing else.
    pub const NONE: Self = Self { add: false, parse: false };
    /// A user's text as the model's whole input.
    pub const ADD: Self = Self { add: true, parse: false };
    /// A rendered chat template, which writes its own BOS.
    pub const PARSE: Self = Self { add: false, parse: true };
}

/// What turns a fragment of plain text into tokens.
enum Engine {
    Bpe(bpe::Bpe),
    Spm(spm::Spm),
    Rwkv(rwkv::Rwkv),
    Json(Box<json::Json>),
}

/// A model's tokenizer: from text to token ids and back.
pub struct Tokenizer {
    pieces: Pieces,
    engine: Engine,
    specials: SpecialTokens,
    /// Ids that go before and after every text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    end_of_generation: Vec<u32>,
    /// A template that does not compile spoils only what needs it, so its fault is kept until then.
    template: Option<Result<ChatTemplate, String>>,
    strips_first_space: bool,
    /// Finds control tokens in conversations.
    guard: OnceLock<Result<guard::Guard, String>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, TokenizerError> {
        self.encode_bytes(text.as_bytes(), specials)
    }

    /// Bytes that are not UTF-8 become byte tokens where the vocabulary has them; otherwise the error names the offset.
    pub fn encode_bytes(&self, text: &[u8], specials: Specials) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > i32::MAX as usize {
            return Err(TokenizerError::TextTooLong(text.len()));
        }
        let mut ids = Vec::new();
        if specials.add {
            ids.extend_from_slice(&self.prefix);
        }
        self.encode_split(text, 0, true, specials.parse, &mut ids)?;
        if specials.add {
            ids.extend_from_slice(&self.suffix);
        }
        Ok(ids)
    }

    /// Encodes text cut at the tokens written in it.
    fn encode_split(
        &self,
        text: &[u8],
        offset: usize,
        mut after_special: bool,
        parse: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        for fragment in self.specials.split(text, parse) {
            after_special = match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    true
                }
                Fragment::Text(range) => {
                    let start = offset + range.start;
                    self.encode_fragment(&text[range], start, after_special, parse, ids)?;
                    false
                }
            };
        }
        Ok(())
    }

    /// Encodes text without written-out tokens, which begins at `offset` of the whole.
    fn encode_fragment(
        &self,
        bytes: &[u8],
        mut offset: usize,
        mut after_special: bool,
        parse: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if let Engine::Rwkv(rwkv) = &self.engine {
            return rwkv.encode(&self.pieces, bytes, offset, ids);
        }
        for chunk in bytes.utf8_chunks() {
            let text = chunk.valid();
            if !text.is_empty() {
                match &self.engine {
                    Engine::Bpe(bpe) => bpe.encode(&self.pieces, text, offset, ids)?,
                    Engine::Spm(spm) => spm.encode(&self.pieces, text, offset, after_special, ids)?,
                    Engine::Json(json) => json.encode(text, parse, ids)?,
                    Engine::Rwkv(rwkv) => rwkv.encode(&self.pieces, text.as_bytes(), offset, ids)?,
                }
                after_special = false;
            }
            offset += text.len();
            for &byte in chunk.invalid() {
                let id = match &self.engine {
                    Engine::Bpe(bpe) => bpe.byte(byte),
                    Engine::Spm(spm) => spm.byte(byte),
                    Engine::Json(json) => json.byte(byte),
                    Engine::Rwkv(_) => None,
                };
                ids.push(id.ok_or(TokenizerError::Unencodable { offset, byte })?);
                offset += 1;
                after_special = false;
            }
        }
        Ok(())
    }

    /// The tokens without those that [`Specials::add`] puts around a text.
    pub fn without_added<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        let ids = ids.strip_prefix(self.prefix.as_slice()).unwrap_or(ids);
        ids.strip_suffix(self.suffix.as_slice()).unwrap_or(ids)
    }

    /// The bytes of a token; they need not be whole characters.
    pub fn piece(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id)
    }

    /// The bytes of a text.
    pub fn decode_bytes(&self, ids: &[u32], keep_special: bool) -> Result<Vec<u8>, TokenizerError> {
        let mut bytes = Vec::new();
        let mut at_start = self.strips_first_space;
        for &id in ids {
            let piece =
                self.piece(id).ok_or(TokenizerError::UnknownId { id, vocab_size: self.vocab_size() })?;
            if self.is_special(id) {
                if keep_special {
                    bytes.extend_from_slice(piece);
                }
                continue;
            }
            bytes.extend_from_slice(if at_start { piece.strip_prefix(b" ").unwrap_or(piece) } else { piece });
            at_start = false;
        }
        Ok(bytes)
    }

    /// The text of the tokens, with U+FFFD for what is not UTF-8.
    pub fn decode(&self, ids: &[u32], keep_special: bool) -> Result<String, TokenizerError> {
        let bytes = self.decode_bytes(ids, keep_special)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// Text from tokens as they come, without special tokens.
    pub fn stream(&self) -> Stream<&Tokenizer> {
        Stream::new(self, false)
    }

    /// Like [`stream`](Self::stream), with special tokens written out.
    pub fn stream_with_special(&self) -> Stream<&Tokenizer> {
        Stream::new(self, true)
    }

    /// The tokens that end an answer, in order.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// How many ids the vocabulary has. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The bytes of the longest token.
    pub fn longest_piece(&self) -> usize {
        self.pieces.longest()
    }

    /// Whether the token steers the model rather than being text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.kind(id).is_some_and(pieces::Kind::is_special)
    }

    /// The token whose bytes are exactly these.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.pieces.ids().find(|(_, piece, _)| *piece == text.as_bytes()).map(|(id, ..)| id)
    }

    /// The model's chat template, `None` if it comes without one; an error if its template does not compile.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, TokenizerError> {
        match &self.template {
            None => Ok(None),
            Some(Ok(template)) => Ok(Some(template)),
            Some(Err(fault)) => Err(TokenizerError::Template(fault.clone())),
        }
    }

    /// Replaces the chat template, for models that come without one or with a wrong one.
    pub fn set_chat_template(&mut self, template: ChatTemplate) {
        self.template = Some(Ok(template));
    }
}
