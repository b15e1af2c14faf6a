//! Keeping what people write apart from what a chat template writes: both end up in one text, and only the template's
//! control tokens may be read as such.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::pieces::Pieces;
use crate::specials::{Fragment, SpecialTokens, Written};
use crate::{ChatTemplate, Message, Tokenizer, TokenizerError};

/// Code points that no text has: they are set aside for use within a program.
const MARKS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// Finds control tokens that are written out.
pub(crate) struct Guard {
    /// Every occurrence, also those within one another; `None` if the vocabulary has no such tokens.
    all: Option<AhoCorasick>,
    split: SpecialTokens,
}

impl Guard {
    pub(crate) fn new(pieces: &Pieces) -> Result<Self, TokenizerError> {
        let control = pieces.ids().filter(|(_, piece, kind)| kind.is_special() && !piece.is_empty());
        let written: Vec<Written> = control
            .map(|(id, piece, _)| Written { id, text: piece.to_vec(), control: true, strips_right: false })
            .collect();
        let build = |texts| AhoCorasick::builder().match_kind(MatchKind::Standard).build(texts);
        let all = match written.is_empty() {
            true => None,
            false => Some(
                build(written.iter().map(|w| &w.text))
                    .map_err(|e| TokenizerError::Malformed(format!("special tokens: {e}")))?,
            ),
        };
        Ok(Self { all, split: SpecialTokens::new(&written)? })
    }

    fn occurs_in(&self, text: &str) -> bool {
        self.all.as_ref().is_some_and(|all| all.is_match(text))
    }

    /// The text with `mark` behind the first character of every control token written in it.
    fn marked(&self, text: &str, mark: char) -> String {
        let Some(all) = &self.all else { return text.to_owned() };
        let starts: BTreeSet<usize> = all.find_overlapping_iter(text).map(|found| found.start()).collect();
        let mut marked = String::with_capacity(text.len() + 4 * starts.len());
        for (at, c) in text.char_indices() {
            marked.push(c);
            if starts.contains(&at) {
                marked.push(mark);
            }
        }
        marked
    }
}

impl Tokenizer {
    /// Built when the first conversation comes, and once.
    fn guard(&self) -> Result<&Guard, TokenizerError> {
        let guard = self.guard.get_or_init(|| Guard::new(&self.pieces).map_err(|fault| fault.to_string()));
        guard.as_ref().map_err(|fault| TokenizerError::Malformed(fault.clone()))
    }

    /// The tokens of a conversation up to where the model is to answer. What the messages say is text: a control
    /// token spelled out in one of them is not read as one, so nobody can write a turn of somebody else.
    pub fn encode_chat(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        extra: &serde_json::Value,
    ) -> Result<Vec<u32>, TokenizerError> {
        let guard = self.guard()?;
        if !messages.iter().any(|m| guard.occurs_in(&m.content) || guard.occurs_in(&m.role)) {
            return self.encode(&template.render(messages, true, extra)?, crate::Specials::PARSE);
        }
        let is_free =
            |mark: &char| !messages.iter().any(|m| m.content.contains(*mark) || m.role.contains(*mark));
        let mark = MARKS.clone().find(is_free).ok_or(TokenizerError::Marks)?;
        let marked: Vec<Message> = messages
            .iter()
            .map(|m| Message::new(guard.marked(&m.role, mark), guard.marked(&m.content, mark)))
            .collect();
        let text = template.render(&marked, true, extra)?;
        let mut ids = Vec::new();
        let mut after_special = true;
        for fragment in guard.split.split(text.as_bytes(), true) {
            after_special = match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    true
                }
                Fragment::Text(range) => {
                    let plain = text[range.clone()].replace(mark, "");
                    self.encode_split(plain.as_bytes(), range.start, after_special, false, &mut ids)?;
                    false
                }
            };
        }
        Ok(ids)
    }
}
