//! The one error of this crate.

use std::path::PathBuf;

/// Why a tokenizer could not be built, or a text could not be encoded, decoded or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is {bytes} bytes long; a tokenizer file may have at most {limit}")]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
    #[error("the tokenizer is malformed: {0}")]
    Malformed(String),
    #[error("the tokenizer model '{0}' is not supported (known: gpt2, llama, rwkv)")]
    UnknownModel(String),
    #[error("the pre-tokenizer '{name}' is not supported (known: {known})")]
    UnknownPreTokenizer { name: String, known: String },
    #[error("{0} of the tokenizer is not supported")]
    Unsupported(String),
    #[error("the vocabulary cannot express the byte 0x{byte:02x} at offset {offset} of the text")]
    Unencodable { offset: usize, byte: u8 },
    #[error("the text is {0} bytes long; at most 2 GiB can be tokenized at once")]
    TextTooLong(usize),
    #[error("the pre-tokenizer's pattern gave up on this text: {0}")]
    Pattern(String),
    #[error("the tokenizer failed: {0}")]
    Encode(String),
    #[error("token id {id} is outside of the vocabulary of {vocab_size} tokens")]
    UnknownId { id: u32, vocab_size: usize },
    #[error(
        "the messages spell out control tokens and use all of the code points U+FDD0 to U+FDEF, which no text has"
    )]
    Marks,
    #[error("the chat template is malformed: {0}")]
    Template(String),
    #[error("the chat template failed: {0}")]
    Render(String),
}
