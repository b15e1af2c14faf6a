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
        Self::after(&[], tokenizer, keep_special)
    }

    /// A text that goes on after these tokens: its first space is its own.
    pub fn after(before: &[u32], tokenizer: T, keep_special: bool) -> Self {
        let known = tokenizer.borrow();
        let at_start = known.strips_first_space && before.iter().all(|&id| known.is_special(id));
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
    use crate::GgufVocab;
    use proptest::prelude::*;

    #[test]
    fn only_the_beginning_of_a_text_loses_the_space_put_before_it() {
        let vocab = GgufVocab {
            model: "llama".into(),
            tokens: vec![b"<unk>", b"<s>", b"</s>", "\u{2581}sky".as_bytes(), "\u{2581}blue".as_bytes()],
            types: vec![2, 3, 3, 1, 1],
            scores: vec![0.0; 5],
            ..GgufVocab::default()
        };
        let tokenizer = Tokenizer::from_gguf(vocab).expect("builds");
        let told = |before: &[u32], ids: &[u32]| -> String {
            let mut stream = Stream::after(before, &tokenizer, false);
            ids.iter().map(|&id| stream.push(id).expect("a token")).collect()
        };
        assert_eq!(told(&[], &[3, 4]), "sky blue");
        assert_eq!(told(&[1], &[3, 4]), "sky blue", "nothing of the text was there before");
        assert_eq!(told(&[1, 3], &[4, 4]), " blue blue");
        // However a text is cut, its parts are the whole.
        let whole = [1, 3, 4, 2, 3];
        for cut in 0..=whole.len() {
            let (before, rest) = whole.split_at(cut);
            let joined = tokenizer.decode(before, false).expect("tokens") + &told(before, rest);
            assert_eq!(joined, tokenizer.decode(&whole, false).expect("tokens"), "{cut}");
        }
    }

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
