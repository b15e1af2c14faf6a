//! The pool of KV blocks: who holds them, and which of them are known by what they contain.
//!
//! A full block of a sequence is registered under the name of all tokens up to its end, and stays findable after the
//! sequence has let go of it, until its memory is needed. Of two blocks with the same content only one is registered; a
//! sequence that comes with the other gets the registered one for it. So whoever holds a registered block holds all
//! those before it, too, and as tables are let go of from their ends, the least recently used block is never one on which
//! another that can still be found depends.

mod audit;

use std::collections::HashMap;

use exotherm_kernels::BLOCK;

use crate::lru::Lru;

/// Where the blocks of the KV cache are, each number counted for itself: `free + used + cached` is `total` at every moment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Books {
    /// Blocks that nobody holds and whose content nobody can find.
    pub free: usize,
    /// Blocks in the tables of running sequences.
    pub used: usize,
    /// Blocks that nobody holds but whose content can be found; taken when none is free.
    pub cached: usize,
    pub total: usize,
}

impl Books {
    pub fn balance(&self) -> bool {
        self.free + self.used + self.cached == self.total
    }
}

/// Which beginning of sequences a registered block ends. Never used again for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PrefixId(u64);

impl PrefixId {
    /// The empty beginning.
    pub const EMPTY: PrefixId = PrefixId(0);
}

struct Block {
    /// Tables that it is in.
    holders: u32,
    content: Option<Content>,
}

/// What a registered block contains: these tokens after that beginning.
struct Content {
    name: u64,
    id: PrefixId,
    before: PrefixId,
    tokens: [u32; BLOCK],
}

impl Content {
    fn is(&self, before: PrefixId, tokens: &[u32]) -> bool {
        self.before == before && self.tokens == tokens
    }
}

pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    /// Taken from the end.
    free: Vec<u32>,
    /// Registered blocks without holders.
    cached: Lru,
    by_name: HashMap<u64, u32>,
    last_id: u64,
    /// Blocks with holders.
    used: usize,
}

impl BlockPool {
    pub fn new(blocks: usize) -> BlockPool {
        BlockPool {
            blocks: (0..blocks).map(|_| Block { holders: 0, content: None }).collect(),
            free: (0..blocks as u32).rev().collect(),
            cached: Lru::new(blocks),
            by_name: HashMap::with_capacity(blocks),
            last_id: 0,
            used: 0,
        }
    }

    pub fn books(&self) -> Books {
        let (free, cached, total) = (self.free.len(), self.cached.len(), self.blocks.len());
        Books { free, used: self.used, cached, total }
    }

    /// Blocks that `take` can give.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    pub fn holders(&self, block: u32) -> u32 {
        self.blocks[block as usize].holders
    }

    /// Whether one holder alone has it and nobody else can find it.
    pub fn is_own(&self, block: u32) -> bool {
        let block = &self.blocks[block as usize];
        block.holders == 1 && block.content.is_none()
    }

    /// The beginning that a registered block ends.
    pub fn id(&self, block: u32) -> PrefixId {
        self.blocks[block as usize].content.as_ref().map_or(PrefixId::EMPTY, |content| content.id)
    }

    /// A block for one holder: a free one, or else the one whose content was used least recently.
    pub fn take(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| {
            let oldest = self.cached.pop()?;
            self.forget(oldest);
            Some(oldest)
        })?;
        self.blocks[block as usize].holders = 1;
        self.used += 1;
        Some(block)
    }

    /// Adds a holder.
    pub fn hold(&mut self, block: u32) {
        let at = &mut self.blocks[block as usize];
        debug_assert!(at.holders > 0 || at.content.is_some(), "block {block} has no content to be held for");
        at.holders += 1;
        if at.holders == 1 {
            self.used += 1;
            self.cached.remove(block);
        }
    }

    /// Takes a holder away.
    pub fn release(&mut self, block: u32) {
        let at = &mut self.blocks[block as usize];
        at.holders = at.holders.checked_sub(1).expect("a block is released by a holder");
        if at.holders > 0 {
            return;
        }
        self.used -= 1;
        match &at.content {
            Some(_) => self.cached.push(block),
            None => self.free.push(block),
        }
    }

    /// Takes a holder away from all blocks of a table, the last first.
    pub fn release_all(&mut self, table: &mut Vec<u32>) {
        while let Some(block) = table.pop() {
            self.release(block);
        }
    }

    /// Makes a full block findable as `tokens` after the beginning `before`. Where such a block is registered already,
    /// the caller is given that one and has let go of its own. `None` where other content has the same name: then neither
    /// this block nor those after it can be registered.
    pub fn register(
        &mut self,
        block: u32,
        name: u64,
        before: PrefixId,
        tokens: &[u32],
    ) -> Option<(u32, PrefixId)> {
        if let Some(&same) = self.by_name.get(&name) {
            let id = self.blocks[same as usize].content.as_ref().filter(|c| c.is(before, tokens))?.id;
            self.hold(same);
            self.release(block);
            return Some((same, id));
        }
        self.last_id += 1;
        let id = PrefixId(self.last_id);
        let tokens = tokens.try_into().expect("a full block is registered");
        self.blocks[block as usize].content = Some(Content { name, id, before, tokens });
        self.by_name.insert(name, block);
        Some((block, id))
    }

    /// The block that is registered as `tokens` after the beginning `before`.
    pub fn find(&self, name: u64, before: PrefixId, tokens: &[u32]) -> Option<(u32, PrefixId)> {
        let &block = self.by_name.get(&name)?;
        let content = self.blocks[block as usize].content.as_ref().filter(|c| c.is(before, tokens))?;
        Some((block, content.id))
    }

    /// Frees all blocks that nobody holds.
    pub fn forget_cached(&mut self) {
        while let Some(block) = self.cached.pop() {
            self.forget(block);
            self.free.push(block);
        }
    }

    /// Lets the content of a block be found no more, unless it is in another's table, too.
    pub fn forget_own(&mut self, block: u32) {
        if self.holders(block) == 1 {
            self.forget(block);
        }
    }

    fn forget(&mut self, block: u32) {
        if let Some(content) = self.blocks[block as usize].content.take() {
            self.by_name.remove(&content.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u32; BLOCK] = [1; BLOCK];
    const B: [u32; BLOCK] = [2; BLOCK];

    #[test]
    fn unheld_content_is_kept_until_its_block_is_needed() {
        let mut pool = BlockPool::new(3);
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        let (_, a) = pool.register(first, 10, PrefixId::EMPTY, &A).unwrap();
        let (_, ab) = pool.register(second, 20, a, &B).unwrap();
        pool.audit([[first, second].as_slice()].into_iter()).unwrap();
        pool.release_all(&mut vec![first, second]);
        assert_eq!(pool.books(), Books { free: 1, used: 0, cached: 2, total: 3 });
        assert_eq!(pool.find(10, PrefixId::EMPTY, &A), Some((first, a)));
        assert_eq!(pool.find(20, a, &B), Some((second, ab)));

        pool.take().unwrap();
        assert_eq!(pool.take(), Some(second), "the later block of a sequence goes before the earlier");
        assert_eq!((pool.find(20, a, &B), pool.find(10, PrefixId::EMPTY, &A)), (None, Some((first, a))));
        pool.hold(first);
        assert_eq!(pool.take(), None, "what is held is not taken");
        pool.release(first);
        pool.forget_cached();
        assert_eq!(pool.books(), Books { free: 1, used: 2, cached: 0, total: 3 });
        assert_eq!(pool.find(10, PrefixId::EMPTY, &A), None);
    }

    #[test]
    fn the_same_content_is_kept_once() {
        let mut pool = BlockPool::new(2);
        let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
        let (_, a) = pool.register(first, 10, PrefixId::EMPTY, &A).unwrap();
        assert_eq!(pool.register(second, 10, PrefixId::EMPTY, &A), Some((first, a)));
        assert_eq!((pool.holders(first), pool.books().free), (2, 1));
        pool.audit([[first].as_slice(), [first].as_slice()].into_iter()).unwrap();
    }

    #[test]
    fn a_name_alone_proves_nothing() {
        let mut pool = BlockPool::new(4);
        let blocks: Vec<u32> = (0..3).map(|_| pool.take().unwrap()).collect();
        let (_, a) = pool.register(blocks[0], 10, PrefixId::EMPTY, &A).unwrap();
        assert_eq!(pool.find(10, PrefixId::EMPTY, &B), None, "other tokens");
        assert_eq!(pool.find(10, a, &A), None, "the same tokens after others");
        assert_eq!(pool.register(blocks[1], 10, PrefixId::EMPTY, &B), None);
        assert!(pool.is_own(blocks[1]) && !pool.is_own(blocks[0]));
        pool.release_all(&mut blocks.clone());
        assert_eq!(pool.books(), Books { free: 3, used: 0, cached: 1, total: 4 });
    }
}
