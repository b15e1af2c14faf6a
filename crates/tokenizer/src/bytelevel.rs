//! GPT-2's way to write any byte as a printable character, as byte-level vocabularies store their tokens.

/// The byte that a character stands for.
pub(crate) fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        // The other bytes follow from U+0100 on, in order: 0-0x20, 0x7f-0xa0, 0xad.
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The bytes that a token's text stands for; the text's own bytes if it is not written byte by byte.
pub(crate) fn decode(text: &[u8]) -> Vec<u8> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.chars().map(byte_of).collect())
        .unwrap_or_else(|| text.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut seen = [0u32; 256];
        for c in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = byte_of(c) {
                seen[byte as usize] += 1;
            }
        }
        assert!(seen.iter().all(|&count| count == 1));
        assert_eq!(decode("Ġthe".as_bytes()), b" the");
        assert_eq!(decode("ĉĊ".as_bytes()), b"\t\n");
        assert_eq!(decode("▁x".as_bytes()), "▁x".as_bytes());
    }
}
