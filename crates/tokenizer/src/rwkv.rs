//! The RWKV world tokenizer: at every position, the longest token that fits.

use crate::TokenizerError;
use crate::pieces::{Kind, Pieces};

pub(crate) struct Rwkv {
    /// Token ids in the order of their bytes. The tokens that begin alike lie side by side, so following a text
    /// byte by byte narrows a range of this list: a trie without nodes.
    sorted: Vec<u32>,
}

impl Rwkv {
    pub(crate) fn new(pieces: &Pieces) -> Self {
        let usable = |kind: Kind| !kind.is_special() && kind != Kind::Unused;
        let mut sorted: Vec<u32> = pieces
            .ids()
            .filter(|(_, piece, kind)| usable(*kind) && !piece.is_empty())
            .map(|(id, ..)| id)
            .collect();
        sorted.sort_by_key(|&id| (pieces.get(id), id));
        Self { sorted }
    }

    pub(crate) fn encode(
        &self,
        pieces: &Pieces,
        text: &[u8],
        offset: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut at = 0;
        while at < text.len() {
            let (id, len) = self
                .longest(pieces, &text[at..])
                .ok_or(TokenizerError::Unencodable { offset: offset + at, byte: text[at] })?;
            ids.push(id);
            at += len;
        }
        Ok(())
    }

    fn longest(&self, pieces: &Pieces, text: &[u8]) -> Option<(u32, usize)> {
        let mut range = self.sorted.as_slice();
        let mut best = None;
        for (depth, &byte) in text.iter().enumerate() {
            let byte_at = |id: &u32| pieces.get(*id).and_then(|piece| piece.get(depth)).copied();
            let start = range.partition_point(|id| byte_at(id) < Some(byte));
            let end = range.partition_point(|id| byte_at(id) <= Some(byte));
            range = range.get(start..end)?;
            let Some(&first) = range.first() else { break };
            if pieces.get(first).is_some_and(|piece| piece.len() == depth + 1) {
                best = Some((first, depth + 1));
            }
        }
        best
    }
}

/// GGUF stores the tokens as Python prints bytes: `\n`, `\t`, `\r`, `\xff`, `\\`, `\'`.
pub(crate) fn unescape_gguf(token: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'\\' {
            bytes.push(first);
            continue;
        }
        let (&escape, tail) = rest.split_first()?;
        rest = tail;
        match escape {
            b'n' => bytes.push(b'\n'),
            b't' => bytes.push(b'\t'),
            b'r' => bytes.push(b'\r'),
            b'x' => {
                bytes.push(hex(rest.get(..2)?)? as u8);
                rest = &rest[2..];
            }
            other => bytes.push(other),
        }
    }
    Some(bytes)
}

fn hex(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A Python literal, `'…'` or `b'…'` with either quote, as the bytes it means.
fn python_literal(literal: &str) -> Option<Vec<u8>> {
    let (is_bytes, quoted) = match literal.strip_prefix('b') {
        Some(rest) => (true, rest),
        None => (false, literal),
    };
    let quote = quoted.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut rest = quoted.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let code = if c == '\\' { escaped(&mut rest)? } else { c as u32 };
        if is_bytes {
            bytes.push(u8::try_from(code).ok()?);
        } else {
            bytes.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Some(bytes)
}

/// What follows a backslash, taken off the front of `rest`.
fn escaped(rest: &mut &str) -> Option<u32> {
    let kind = rest.chars().next()?;
    *rest = &rest[kind.len_utf8()..];
    let digits = match kind {
        'n' => return Some(10),
        'r' => return Some(13),
        't' => return Some(9),
        '\\' | '\'' | '"' => return Some(kind as u32),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => return None,
    };
    let value = hex(rest.as_bytes().get(..digits)?)?;
    *rest = &rest[digits..];
    Some(value)
}

/// Reads `rwkv_vocab_v20230424.txt`: a line per token, `ID LITERAL LENGTH`. Id 0, which the file leaves out, ends a text.
pub(crate) fn parse_vocab(text: &str) -> Result<Pieces, TokenizerError> {
    let mut tokens: Vec<(u32, Vec<u8>)> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let token = parse_line(line);
        tokens.push(token.ok_or_else(|| {
            TokenizerError::Malformed(format!(
                "line {} of the RWKV vocabulary is not ID LITERAL LENGTH",
                number + 1
            ))
        })?);
    }
    tokens.sort_by_key(|(id, _)| *id);
    let malformed = |what: String| TokenizerError::Malformed(format!("the RWKV vocabulary {what}"));
    let mut pieces = Pieces::with_capacity(tokens.len() + 1);
    for (id, bytes) in &tokens {
        let next = pieces.len() as u32;
        if *id < next {
            return Err(malformed(format!("gives id {id} twice")));
        }
        // Ids that no line gives stay empty. More gaps than tokens is no vocabulary but an attack on our memory.
        if *id as usize > 2 * tokens.len() {
            return Err(malformed(format!("has the id {id} among {} tokens", tokens.len())));
        }
        for gap in next..*id {
            let kind = if gap == 0 { Kind::Control } else { Kind::Unused };
            let name: &[u8] = if gap == 0 { b"<|endoftext|>" } else { b"" };
            pieces.push(name, kind).ok_or_else(|| malformed("is too large".into()))?;
        }
        pieces.push(bytes, Kind::Normal).ok_or_else(|| malformed("is too large".into()))?;
    }
    Ok(pieces)
}

fn parse_line(line: &str) -> Option<(u32, Vec<u8>)> {
    let (id, rest) = line.split_once(' ')?;
    let (literal, length) = rest.rsplit_once(' ')?;
    let bytes = python_literal(literal)?;
    (length.parse() == Ok(bytes.len())).then_some((id.parse().ok()?, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_mean_what_python_means() {
        assert_eq!(python_literal(r"'\x80'").as_deref(), Some("\u{80}".as_bytes()));
        assert_eq!(python_literal(r"b'\x80'").as_deref(), Some(&[0x80u8][..]));
        assert_eq!(python_literal(r#""it's""#).as_deref(), Some(&b"it's"[..]));
        assert_eq!(python_literal(r"'\u2028\\'").as_deref(), Some("\u{2028}\\".as_bytes()));
        assert_eq!(python_literal("' '").as_deref(), Some(&b" "[..]));
        for bad in ["", "b", "'", "'\\'", "x'a'", r"'\xz0'", r"b'\u0100'", r"'\ud800'", r"'\x8é'"] {
            assert_eq!(python_literal(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_longest_token_wins() {
        let pieces =
            parse_vocab("1 'a' 1\n2 'ab' 2\n3 'abcd' 4\n4 b'\\xff' 1\n6 'c' 1\n").expect("a vocabulary");
        let rwkv = Rwkv::new(&pieces);
        let mut ids = Vec::new();
        rwkv.encode(&pieces, b"abcababcd\xffa", 0, &mut ids).expect("all bytes are known");
        assert_eq!(ids, [2, 6, 2, 3, 4, 1]);
        let error = rwkv.encode(&pieces, b"ax", 10, &mut ids).expect_err("x is unknown");
        assert!(matches!(error, TokenizerError::Unencodable { offset: 11, byte: b'x' }));
    }

    #[test]
    fn lines_that_lie_are_refused() {
        for bad in ["1 'a' 2", "1 'a'", "x 'a' 1", "1 'a' 1\n1 'b' 1", "4000000000 'a' 1", "1"] {
            assert!(parse_vocab(bad).is_err(), "{bad}");
        }
    }
}
