//! How the beginnings of sequences are named, so that what was computed of one can be found for another.

use std::hash::{DefaultHasher, Hasher};

/// The name of the tokens up to the end of a block: made of the name up to the block before it (0 before the first) and
/// the block's tokens. Two beginnings may have the same name by accident, so that a name alone proves nothing.
pub(crate) type Chain = fn(u64, &[u32]) -> u64;

pub(crate) fn chained(before: u64, tokens: &[u32]) -> u64 {
    // Made with keys that are always the same.
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(before);
    tokens.iter().for_each(|&token| hasher.write_u32(token));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_depends_on_all_tokens_and_their_order() {
        let names = [
            chained(0, &[1, 2]),
            chained(0, &[2, 1]),
            chained(0, &[1]),
            chained(1, &[1, 2]),
            chained(chained(0, &[1, 2]), &[1, 2]),
        ];
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name));
        }
        assert_eq!(chained(5, &[7, 8]), chained(5, &[7, 8]));
    }
}
