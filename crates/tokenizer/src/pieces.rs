//! The bytes of every token in one allocation, and the way back from bytes to a token.

use std::hash::BuildHasher;

use hashbrown::HashTable;

/// What a token is, as GGUF's `tokenizer.ggml.token_type` counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    /// Stands for text that the vocabulary cannot express.
    Unknown,
    /// Steers the model and never comes out of a user's text.
    Control,
    /// Added by hand: found in a text before anything else is done to it.
    UserDefined,
    Unused,
    /// One raw byte.
    Byte,
}

impl Kind {
    pub(crate) fn from_gguf(value: i32) -> Self {
        match value {
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => Kind::Normal,
        }
    }

    /// Left out when a text is shown to a user.
    pub(crate) fn is_special(self) -> bool {
        matches!(self, Kind::Control | Kind::Unknown)
    }
}

/// Token bytes and kinds, indexed by id.
#[derive(Default)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// `ends[id]` is where the piece of `id` ends; it starts where the one before it ends.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    longest: usize,
}

impl Pieces {
    pub(crate) fn with_capacity(tokens: usize) -> Self {
        Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(tokens),
            kinds: Vec::with_capacity(tokens),
            longest: 0,
        }
    }

    /// Adds the next token. `None` when the pieces together pass 4 GiB.
    pub(crate) fn push(&mut self, piece: &[u8], kind: Kind) -> Option<()> {
        let end = u32::try_from(self.bytes.len().checked_add(piece.len())?).ok()?;
        self.bytes.extend_from_slice(piece);
        self.ends.push(end);
        self.kinds.push(kind);
        self.longest = self.longest.max(piece.len());
        Some(())
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        self.bytes.get(start..end)
    }

    pub(crate) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = (u32, &[u8], Kind)> {
        (0..self.len() as u32).filter_map(|id| Some((id, self.get(id)?, self.kind(id)?)))
    }

    /// Gives back what growing the arena took too much of.
    pub(crate) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
    }
}

/// From bytes to a token id. Keyed with a random seed, so that no vocabulary can be made to collide.
pub(crate) struct PieceIndex {
    table: HashTable<u32>,
    hasher: std::hash::RandomState,
}

impl PieceIndex {
    /// Indexes every token that `wanted` accepts; of tokens with the same bytes the first one wins.
    pub(crate) fn new(pieces: &Pieces, wanted: impl Fn(Kind) -> bool) -> Self {
        let hasher = std::hash::RandomState::new();
        let mut table = HashTable::with_capacity(pieces.len());
        for (id, piece, kind) in pieces.ids() {
            if piece.is_empty() || !wanted(kind) {
                continue;
            }
            let hash = hasher.hash_one(piece);
            if table.find(hash, |&other| pieces.get(other) == Some(piece)).is_none() {
                table
                    .insert_unique(hash, id, |&other| hasher.hash_one(pieces.get(other).unwrap_or_default()));
            }
        }
        Self { table, hasher }
    }

    pub(crate) fn find(&self, pieces: &Pieces, piece: &[u8]) -> Option<u32> {
        if piece.is_empty() || piece.len() > pieces.longest() {
            return None;
        }
        self.table.find(self.hasher.hash_one(piece), |&id| pieces.get(id) == Some(piece)).copied()
    }
}
