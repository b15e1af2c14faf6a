//! Byte-level BPE from GGUF metadata.
//!
//! The `tokenizers` crate could run it too, but keeps every token and every merge as strings of their own, several
//! times: for GPT-2's 50,257 tokens it takes 16 MB and five times the time to load, where this takes under 3 MB.

use std::hash::BuildHasher;

use hashbrown::HashTable;

use crate::TokenizerError;
use crate::bytelevel;
use crate::merge::{Merger, NONE};
use crate::pieces::{Kind, PieceIndex, Pieces};
use crate::pre::PreTokenizer;

/// Two tokens and the one they make. Its place in the list is its rank.
struct Merge {
    left: u32,
    right: u32,
    joined: u32,
}

pub(crate) struct Bpe {
    pre: PreTokenizer,
    index: PieceIndex,
    merges: Vec<Merge>,
    by_pair: HashTable<u32>,
    hasher: std::hash::RandomState,
    /// The token of each single byte, or [`NONE`].
    bytes: [u32; 256],
}

/// A token as it stands in the file, as the bytes it means.
pub(crate) fn piece(token: &[u8], kind: Kind) -> Vec<u8> {
    match kind {
        Kind::Normal | Kind::Unused | Kind::Byte => bytelevel::decode(token),
        Kind::Unknown | Kind::Control | Kind::UserDefined => token.to_vec(),
    }
}

impl Bpe {
    /// Merges that name tokens the vocabulary has not got can never happen and are left out.
    pub(crate) fn new(pieces: &Pieces, merges: &[&[u8]], pre: PreTokenizer) -> Self {
        let index = PieceIndex::new(pieces, |kind| !kind.is_special());
        let mut bytes = [NONE; 256];
        for (byte, id) in (0..=255u8).zip(bytes.iter_mut()) {
            *id = index.find(pieces, &[byte]).unwrap_or(NONE);
        }
        let mut bpe = Self {
            pre,
            index,
            merges: Vec::with_capacity(merges.len()),
            by_pair: HashTable::with_capacity(merges.len()),
            hasher: std::hash::RandomState::new(),
            bytes,
        };
        for merge in merges {
            bpe.add_merge(pieces, merge);
        }
        bpe
    }

    fn add_merge(&mut self, pieces: &Pieces, merge: &[u8]) -> Option<()> {
        // The first byte may itself be a space in vocabularies that do not encode it.
        let space = 1 + merge.get(1..)?.iter().position(|&b| b == b' ')?;
        let mut joined = bytelevel::decode(&merge[..space]);
        let left = self.index.find(pieces, &joined)?;
        let tail = bytelevel::decode(&merge[space + 1..]);
        let right = self.index.find(pieces, &tail)?;
        joined.extend_from_slice(&tail);
        let joined = self.index.find(pieces, &joined)?;
        if self.find_merge(left, right).is_none() {
            let rank = self.merges.len() as u32;
            self.merges.push(Merge { left, right, joined });
            let (merges, hasher) = (&self.merges, &self.hasher);
            self.by_pair.insert_unique(hasher.hash_one((left, right)), rank, |&other| {
                let merge = &merges[other as usize];
                hasher.hash_one((merge.left, merge.right))
            });
        }
        Some(())
    }

    /// The rank of the pair and the token it makes.
    fn find_merge(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let rank = *self.by_pair.find(self.hasher.hash_one((left, right)), |&rank| {
            let merge = &self.merges[rank as usize];
            merge.left == left && merge.right == right
        })?;
        Some((rank, self.merges[rank as usize].joined))
    }

    pub(crate) fn byte(&self, byte: u8) -> Option<u32> {
        Some(self.bytes[byte as usize]).filter(|&id| id != NONE)
    }

    /// Appends the tokens of `text`, which begins at `offset` of what the caller was given.
    pub(crate) fn encode(
        &self,
        pieces: &Pieces,
        text: &str,
        offset: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let whole = 0..text.len();
        let words = self
            .pre
            .splitters
            .iter()
            .try_fold(vec![whole], |words, splitter| splitter.refine(text, &words))?;
        let mut merger = Merger::default();
        for word in words {
            let bytes = &text.as_bytes()[word.clone()];
            if self.pre.ignore_merges
                && let Some(id) = self.index.find(pieces, bytes)
            {
                ids.push(id);
                continue;
            }
            merger.clear();
            for (at, &byte) in bytes.iter().enumerate() {
                merger.push(at, 1, self.bytes[byte as usize]);
            }
            merger.run(|a, b| self.find_merge(a.id, b.id));
            for symbol in merger.result() {
                if symbol.id == NONE {
                    let at = symbol.range().start;
                    return Err(TokenizerError::Unencodable {
                        offset: offset + word.start + at,
                        byte: bytes[at],
                    });
                }
                ids.push(symbol.id);
            }
        }
        Ok(())
    }
}
