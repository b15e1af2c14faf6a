//! Cutting a text into words before the merges: regular expressions in linear time.
//!
//! Published pre-tokenizer patterns need a look-ahead in one place only, `\s+(?!\S)`: of a run of white space before a
//! word, the last character belongs to the word. Everything else is regular. So the look-ahead is taken off the pattern,
//! `regex` (whose time is linear in the text whatever the pattern) does the rest, and the run gives its last character
//! back afterwards. A pattern that is not of that form runs on the backtracking engine, whose limit becomes an error.

use std::ops::Range;

use crate::TokenizerError;

/// A tokenizer.json may bring its own patterns; compiled they may take this many bytes.
const COMPILED_LIMIT: usize = 16 << 20;

enum Engine {
    Linear {
        regex: regex::Regex,
        /// A run of white space gives back its last character (`\s+(?!\S)` was part of the pattern).
        gives_back: bool,
        /// A run that ends in a newline was matched by `\s*[\r\n]+` and gives nothing back.
        newlines_bind: bool,
    },
    Backtracking(fancy_regex::Regex),
}

pub(crate) struct Splitter {
    engine: Engine,
}

impl Splitter {
    pub(crate) fn new(pattern: &str) -> Result<Self, TokenizerError> {
        let (stem, gives_back) = strip_look_ahead(pattern);
        let linear = regex::RegexBuilder::new(&stem).size_limit(COMPILED_LIMIT).build();
        let engine = match linear {
            Ok(regex) => {
                // Of a newline before spaces, `\s+` takes all and `\s*[\r\n]+` only the newline.
                let newlines_bind = regex.find("\n  ").is_some_and(|m| m.range() == (0..1));
                Engine::Linear { regex, gives_back, newlines_bind }
            }
            Err(_) => Engine::Backtracking(
                fancy_regex::RegexBuilder::new(pattern)
                    .delegate_size_limit(COMPILED_LIMIT)
                    .build()
                    .map_err(|e| TokenizerError::Malformed(format!("the pattern {pattern:?}: {e}")))?,
            ),
        };
        Ok(Self { engine })
    }

    /// Calls `found` with every match, in order; never with an empty one.
    pub(crate) fn matches(
        &self,
        text: &str,
        mut found: impl FnMut(Range<usize>),
    ) -> Result<(), TokenizerError> {
        match &self.engine {
            Engine::Linear { regex, gives_back, newlines_bind } => {
                let mut at = 0;
                while let Some(m) = regex.find_at(text, at) {
                    let end = if *gives_back { shortened(text, m.range(), *newlines_bind) } else { m.end() };
                    if end > m.start() {
                        found(m.start()..end);
                    }
                    at = end.max(m.start());
                    if m.is_empty() {
                        let Some(c) = text[at..].chars().next() else { break };
                        at += c.len_utf8();
                    }
                }
            }
            Engine::Backtracking(regex) => {
                for m in regex.find_iter(text) {
                    let m = m.map_err(|e| TokenizerError::Pattern(e.to_string()))?;
                    if m.end() > m.start() {
                        found(m.start()..m.end());
                    }
                }
            }
        }
        Ok(())
    }

    /// Replaces each word by its matches and by what lies between them.
    pub(crate) fn refine(
        &self,
        text: &str,
        words: &[Range<usize>],
    ) -> Result<Vec<Range<usize>>, TokenizerError> {
        let mut refined = Vec::with_capacity(words.len());
        for word in words {
            let mut done = word.start;
            self.matches(&text[word.clone()], |m| {
                let (start, end) = (word.start + m.start, word.start + m.end);
                if start > done {
                    refined.push(done..start);
                }
                refined.push(start..end);
                done = end;
            })?;
            if done < word.end {
                refined.push(done..word.end);
            }
        }
        Ok(refined)
    }
}

/// The pattern without its final `\s+(?!\S)`, and whether it had one.
fn strip_look_ahead(pattern: &str) -> (String, bool) {
    for tail in [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)"] {
        if let Some(stem) = pattern.strip_suffix(tail) {
            return (format!(r"{stem}|\s+"), true);
        }
    }
    (pattern.to_owned(), false)
}

/// Where a match really ends once a run of white space has given its last character to the word after it.
fn shortened(text: &str, m: Range<usize>, newlines_bind: bool) -> usize {
    let run = &text[m.clone()];
    if m.end == text.len() || !run.chars().all(char::is_whitespace) {
        return m.end;
    }
    let Some(last) = run.chars().next_back() else { return m.end };
    let one_character = run.len() == last.len_utf8();
    if one_character || (newlines_bind && matches!(last, '\r' | '\n')) {
        return m.end;
    }
    m.end - last.len_utf8()
}
