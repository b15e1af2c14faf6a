//! Finding tokens that are written out in a text, such as `<|im_start|>`, before the text is cut into words.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::TokenizerError;

/// A token that is looked for in raw text.
pub(crate) struct Written {
    pub(crate) id: u32,
    pub(crate) text: Vec<u8>,
    /// Found only when the caller asks for control tokens to be read.
    pub(crate) control: bool,
    /// Swallows the white space after it.
    pub(crate) strips_right: bool,
}

/// What a text is made of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fragment {
    Token(u32),
    Text(Range<usize>),
}

struct Finder {
    automaton: AhoCorasick,
    tokens: Vec<(u32, bool)>,
}

impl Finder {
    fn new<'a>(written: impl Iterator<Item = &'a Written>) -> Result<Option<Self>, TokenizerError> {
        let (texts, tokens): (Vec<&[u8]>, Vec<(u32, bool)>) = written
            .filter(|token| !token.text.is_empty())
            .map(|token| (token.text.as_slice(), (token.id, token.strips_right)))
            .unzip();
        if texts.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|e| TokenizerError::Malformed(format!("special tokens: {e}")))?;
        Ok(Some(Self { automaton, tokens }))
    }
}

/// The tokens that are found in any text, and those that are found in rendered chat templates as well.
pub(crate) struct SpecialTokens {
    always: Option<Finder>,
    with_control: Option<Finder>,
}

impl SpecialTokens {
    pub(crate) fn new(written: &[Written]) -> Result<Self, TokenizerError> {
        Ok(Self {
            always: Finder::new(written.iter().filter(|token| !token.control))?,
            with_control: Finder::new(written.iter())?,
        })
    }

    /// Cuts the text at the tokens written in it; the leftmost first, of several there the longest.
    pub(crate) fn split(&self, text: &[u8], parse_control: bool) -> Vec<Fragment> {
        let finder = if parse_control { &self.with_control } else { &self.always };
        let mut fragments = Vec::new();
        let mut at = 0;
        while let Some(finder) = finder {
            let Some(found) = finder.automaton.find(aho_corasick::Input::new(text).range(at..)) else {
                break;
            };
            let (id, strips_right) = finder.tokens[found.pattern().as_usize()];
            if found.start() > at {
                fragments.push(Fragment::Text(at..found.start()));
            }
            fragments.push(Fragment::Token(id));
            at = found.end();
            if strips_right {
                at += text[at..].iter().take_while(|b| matches!(b, b' ' | 9..=13)).count();
            }
        }
        if at < text.len() {
            fragments.push(Fragment::Text(at..text.len()));
        }
        fragments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_tokens_are_found_only_on_request() {
        let token =
            |id, text: &str, control, strips_right| Written { id, text: text.into(), control, strips_right };
        let tokens = [token(1, "<a>", true, true), token(2, "<<", false, false), token(3, "", true, false)];
        let specials = SpecialTokens::new(&tokens).expect("builds");
        let text = b"x<a> \n<<y";
        assert_eq!(
            specials.split(text, true),
            [Fragment::Text(0..1), Fragment::Token(1), Fragment::Token(2), Fragment::Text(8..9)]
        );
        assert_eq!(
            specials.split(text, false),
            [Fragment::Text(0..6), Fragment::Token(2), Fragment::Text(8..9)]
        );
        assert_eq!(specials.split(b"", true), []);
    }
}
