//! Text from tokens, as they come.

use std::borrow::Borrow;

use crate::{Tokenizer, TokenizerError};

/// Turns tokens into text one by one and holds back the bytes of a character that is not complete yet. The tokenizer
/// is borrowed or, behind an `Arc`, shared.
pub struct Stream<T> {
    tokenizer: T,
    keep_special: bool,
    decoder: Utf8Stream,
    /// Nothing but special tokens so far, and the tokenizer put a space before the text.
    at_start: bool,
}

impl<T: Borrow<Tokenizer>> Stream<T> {
    /// `keep_special` writes special tokens out; otherwise they are left out.
    pub fn new(tokenizer: T, keep_special: bool) -> Self {
        let at_start = tokenizer.borrow().strips_first_space;
        Self { tokenizer, keep_special, decoder: Utf8Stream::default(), at_start }
    }

    /// The text that is complete with this token; often empty. U+FFFD stands for bytes that can never become valid.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        let tokenizer = self.tokenizer.borrow();
        let piece = tokenizer
            .piece(id)
            .ok_or(TokenizerError::UnknownId { id, vocab_size: tokenizer.vocab_size() })?;
        if tokenizer.is_special(id) {
            let shown: &[u8] = if self.keep_special { piece } else { b"" };
            return Ok(self.decoder.push(shown));
        }
        let shown = if self.at_start { piece.strip_prefix(b" ").unwrap_or(piece) } else { piece };
        self.at_start = false;
        Ok(self.decoder.push(shown))
    }

    /// What is left at the end: U+FFFD for a character that never became complete.
    pub fn finish(&mut self) -> String {
        self.decoder.finish()
    }
}

/// Bytes in, whole characters out.
#[derive(Default)]
struct Utf8Stream {
    pending: Vec<u8>,
}

impl Utf8Stream {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut used = 0;
        while used < self.pending.len() {
            match std::str::from_utf8(&self.pending[used..]) {
                Ok(valid) => {
                    text.push_str(valid);
                    used = self.pending.len();
                }
                Err(error) => {
                    let valid = used + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[used..valid]));
                    used = valid;
                    let Some(broken) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    used += broken;
                }
            }
        }
        self.pending.drain(..used);
        text
    }

    fn finish(&mut self) -> String {
        let left = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_cut_of_any_bytes_gives_the_same_text(bytes: Vec<u8>, cuts: Vec<u8>) {
            let mut stream = Utf8Stream::default();
            let mut text = String::new();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (piece, tail) = rest.split_at((cut as usize % 5).min(rest.len()));
                text.push_str(&stream.push(piece));
                rest = tail;
            }
            text.push_str(&stream.push(rest));
            text.push_str(&stream.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
