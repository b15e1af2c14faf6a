//! SentencePiece's BPE from GGUF metadata (`tokenizer.ggml.model` = `llama`): no words, no merge list. Any two
//! neighbours whose text together is a token may join, the pair with the best score first.

use crate::TokenizerError;
use crate::merge::{Merger, NONE};
use crate::pieces::{Kind, PieceIndex, Pieces};

pub(crate) struct Spm {
    index: PieceIndex,
    /// By token id: lower joins first.
    priorities: Vec<u32>,
    bytes: [u32; 256],
    unknown: Option<u32>,
    /// A space goes before the text and before each text after a special token.
    pub(crate) space_prefix: bool,
}

/// SentencePiece writes a space as U+2581.
const ESCAPED_SPACE: &str = "\u{2581}";

/// A token as it stands in the file, as the bytes it means.
pub(crate) fn piece(token: &[u8], kind: Kind) -> Vec<u8> {
    match (kind, byte_token(token)) {
        (Kind::Byte, Some(byte)) => vec![byte],
        (Kind::Control | Kind::Unknown, _) => token.to_vec(),
        _ => match std::str::from_utf8(token) {
            Ok(text) => text.replace(ESCAPED_SPACE, " ").into_bytes(),
            Err(_) => token.to_vec(),
        },
    }
}

/// `<0x0A>` is the byte 10.
pub(crate) fn byte_token(token: &[u8]) -> Option<u8> {
    let digits = token.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    if digits.len() != 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

impl Spm {
    pub(crate) fn new(pieces: &Pieces, scores: &[f32], unknown: Option<u32>, space_prefix: bool) -> Self {
        let index = PieceIndex::new(pieces, |kind| !kind.is_special() && kind != Kind::Byte);
        let mut bytes = [NONE; 256];
        for (id, piece, kind) in pieces.ids() {
            if let (Kind::Byte, &[byte]) = (kind, piece)
                && bytes[byte as usize] == NONE
            {
                bytes[byte as usize] = id;
            }
        }
        let priorities = scores.iter().map(|&score| priority(score)).collect();
        Self { index, priorities, bytes, unknown, space_prefix }
    }

    pub(crate) fn byte(&self, byte: u8) -> Option<u32> {
        Some(self.bytes[byte as usize]).filter(|&id| id != NONE)
    }

    pub(crate) fn encode(
        &self,
        pieces: &Pieces,
        text: &str,
        offset: usize,
        after_special: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let prefix = if self.space_prefix && after_special { " " } else { "" };
        let text = [prefix, &text.replace(ESCAPED_SPACE, " ")].concat();
        let bytes = text.as_bytes();
        let mut merger = Merger::default();
        for (at, c) in text.char_indices() {
            let len = c.len_utf8();
            merger.push(at, len, self.index.find(pieces, &bytes[at..at + len]).unwrap_or(NONE));
        }
        merger.run(|a, b| {
            let id = self.index.find(pieces, &bytes[a.range().start..b.range().end])?;
            Some((self.priorities.get(id as usize).copied().unwrap_or(u32::MAX), id))
        });
        for symbol in merger.result() {
            if symbol.id != NONE {
                ids.push(symbol.id);
                continue;
            }
            let spelled = &bytes[symbol.range()];
            if spelled.iter().all(|&byte| self.byte(byte).is_some()) {
                ids.extend(spelled.iter().filter_map(|&byte| self.byte(byte)));
            } else if let Some(unknown) = self.unknown {
                ids.push(unknown);
            } else {
                let at = symbol.range().start.saturating_sub(prefix.len());
                return Err(TokenizerError::Unencodable { offset: offset + at, byte: spelled[0] });
            }
        }
        Ok(())
    }
}

/// Turns "the highest score first" into "the lowest number first". NaN comes last.
fn priority(score: f32) -> u32 {
    if score.is_nan() {
        return u32::MAX;
    }
    // IEEE numbers order like sign-and-magnitude integers; adding zero makes -0 the same as 0.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_fall_as_scores_rise() {
        let scores = [f32::INFINITY, 1e9, 1.0, 0.0, -1e-9, -3.0, -1e9, f32::NEG_INFINITY, f32::NAN];
        assert!(scores.windows(2).all(|pair| priority(pair[0]) < priority(pair[1])));
        assert_eq!(priority(0.0), priority(-0.0));
    }
}
