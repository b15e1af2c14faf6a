//! What the `tokenizers` crate takes for granted in a BPE model and panics about: looked at before the crate sees it.
//!
//! It joins the two sides of every merge in a buffer as long as the longest token, and cuts the prefix of continuing
//! subwords off every right side without asking whether it is there.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::TokenizerError;

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct ModelHead {
    vocab: Longest,
    merges: Longest,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl ModelHead {
    pub(crate) fn check(&self) -> Result<(), TokenizerError> {
        if matches!(self.kind.as_deref(), Some("WordPiece" | "WordLevel" | "Unigram")) {
            return Ok(());
        }
        for (name, affix) in [
            ("continuing_subword_prefix", &self.continuing_subword_prefix),
            ("end_of_word_suffix", &self.end_of_word_suffix),
        ] {
            if affix.as_deref().is_some_and(|affix| !affix.is_empty()) {
                return Err(TokenizerError::Unsupported(name.to_owned()));
            }
        }
        if self.merges.0 > self.vocab.0 {
            return Err(TokenizerError::Malformed("a merge makes a text longer than every token".into()));
        }
        Ok(())
    }
}

/// The byte length of the longest key of a vocabulary, or of the longest text that a merge in a list makes.
#[derive(Default)]
struct Longest(usize);

impl<'de> Deserialize<'de> for Longest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collection;
        impl<'de> Visitor<'de> for Collection {
            type Value = Longest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary or a list of merges")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Longest, A::Error> {
                let mut longest = 0;
                while let Some(Length { bytes, .. }) = map.next_key()? {
                    map.next_value::<IgnoredAny>()?;
                    longest = longest.max(bytes);
                }
                Ok(Longest(longest))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Longest, A::Error> {
                let mut longest = 0;
                while let Some(Length { bytes, is_text }) = list.next_element()? {
                    // "a b" is written with one space more than the text that it makes.
                    longest = longest.max(bytes.saturating_sub(usize::from(is_text)));
                }
                Ok(Longest(longest))
            }

            fn visit_unit<E>(self) -> Result<Longest, E> {
                Ok(Longest(0))
            }
        }
        deserializer.deserialize_any(Collection)
    }
}

/// The byte length of a text, or of all texts of a list together; other values count nothing.
struct Length {
    bytes: usize,
    is_text: bool,
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Length;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Length, E> {
                Ok(Length { bytes: text.len(), is_text: true })
            }

            fn visit_f64<E>(self, _: f64) -> Result<Length, E> {
                Ok(Length { bytes: 0, is_text: false })
            }

            fn visit_u64<E>(self, _: u64) -> Result<Length, E> {
                Ok(Length { bytes: 0, is_text: false })
            }

            fn visit_i64<E>(self, _: i64) -> Result<Length, E> {
                Ok(Length { bytes: 0, is_text: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Length, A::Error> {
                let mut bytes = 0usize;
                while let Some(part) = list.next_element::<Length>()? {
                    bytes = bytes.saturating_add(part.bytes);
                }
                Ok(Length { bytes, is_text: false })
            }
        }
        deserializer.deserialize_any(Text)
    }
}
