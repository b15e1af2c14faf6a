//! How the beginnings of sequences are named, so that what was computed of one can be found for another.

use std::hash::{DefaultHasher, Hasher};

use sha2::{Digest as _, Sha256};

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

/// What stands for all tokens of a beginning where they themselves are not kept: SHA-256, block after block. No two
/// beginnings with the same digest are known of anything, nor can be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// Of this beginning and a block after it.
    pub fn and(self, tokens: &[u32]) -> Digest {
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        tokens.iter().for_each(|token| hasher.update(token.to_le_bytes()));
        Digest(hasher.finalize().into())
    }
}

/// The tokens up to the end of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Beginning {
    pub name: u64,
    pub digest: Digest,
}

impl Beginning {
    pub const EMPTY_DIGEST: Digest = Digest([0; 32]);
}

/// Names of beginnings that were asked for of late. There are so many places, and a name takes that of an older one.
pub(crate) struct Names(Vec<u64>);

impl Names {
    pub fn new(places: usize) -> Names {
        Names(vec![0; places])
    }

    fn at(&self, name: u64) -> usize {
        (name % self.0.len().max(1) as u64) as usize
    }

    pub fn has(&self, name: u64) -> bool {
        self.0.get(self.at(name)) == Some(&name)
    }

    pub fn note(&mut self, name: u64) {
        let at = self.at(name);
        if let Some(place) = self.0.get_mut(at) {
            *place = name;
        }
    }
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

    #[test]
    fn a_name_is_known_until_another_takes_its_place() {
        let mut names = Names::new(4);
        [5, 6].into_iter().for_each(|name| names.note(name));
        assert_eq!([5, 6, 9].map(|name| names.has(name)), [true, true, false]);
        names.note(9);
        assert_eq!([5, 6, 9].map(|name| names.has(name)), [false, true, true]);
        let mut none = Names::new(0);
        none.note(5);
        assert!(!none.has(5));
    }

    #[test]
    fn a_digest_depends_on_all_tokens_and_their_order() {
        let empty = Beginning::EMPTY_DIGEST;
        let digests =
            [empty, empty.and(&[1, 2]), empty.and(&[2, 1]), empty.and(&[1]), empty.and(&[1]).and(&[2])];
        for (i, digest) in digests.iter().enumerate() {
            assert!(!digests[..i].contains(digest));
        }
        assert_eq!(empty.and(&[7, 8]), empty.and(&[7, 8]));
    }
}
