//! Copies of recurrent state at the ends of blocks, in slots behind those of the running sequences.
//!
//! Keys and values are kept for every position; a recurrent state is only what all tokens so far have made of it. So that
//! a sequence can begin where another one was, states are copied on the way, and found again by the tokens that they have
//! seen.

use std::collections::HashMap;

use crate::lru::Lru;

/// A snapshot as long as nobody else has made use of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SnapshotId {
    index: u32,
    generation: u64,
}

#[derive(Default)]
struct Snapshot {
    name: u64,
    /// All tokens that the state has seen; empty while it is none.
    tokens: Vec<u32>,
    generation: u64,
}

pub(crate) struct SnapshotPool {
    first_slot: u32,
    snapshots: Vec<Snapshot>,
    /// Slots without a snapshot that are not about to be written.
    free: Vec<u32>,
    kept: Lru,
    by_name: HashMap<u64, u32>,
    generation: u64,
}

impl SnapshotPool {
    /// `count` snapshots in the slots from `first_slot` on.
    pub fn new(first_slot: usize, count: usize) -> SnapshotPool {
        SnapshotPool {
            first_slot: first_slot as u32,
            snapshots: (0..count).map(|_| Snapshot::default()).collect(),
            free: (0..count as u32).rev().collect(),
            kept: Lru::new(count),
            by_name: HashMap::with_capacity(count),
            generation: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.snapshots.len()
    }

    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    pub fn slot(&self, index: u32) -> u32 {
        self.first_slot + index
    }

    /// The snapshot of the state after these tokens.
    pub fn find(&self, name: u64, tokens: &[u32]) -> Option<u32> {
        let &index = self.by_name.get(&name)?;
        (self.snapshots[index as usize].tokens == tokens).then_some(index)
    }

    /// Notes that a snapshot was made use of: it is the last to go, and belongs to nobody alone.
    pub fn touch(&mut self, index: u32) {
        self.kept.remove(index);
        self.kept.push(index);
        self.generation += 1;
        self.snapshots[index as usize].generation = self.generation;
    }

    /// A place for a new snapshot: the caller's own earlier one, a free one, or the one used least recently. It must be
    /// registered or given back.
    pub fn reserve(&mut self, own: Option<SnapshotId>) -> Option<u32> {
        let is_own = |own: &SnapshotId| self.snapshots[own.index as usize].generation == own.generation;
        let own = own.filter(|own| is_own(own) && self.kept.contains(own.index));
        let index = own.map(|own| own.index).or_else(|| self.free.pop()).or_else(|| self.kept.pop())?;
        self.kept.remove(index);
        let snapshot = &mut self.snapshots[index as usize];
        if !snapshot.tokens.is_empty() {
            self.by_name.remove(&snapshot.name);
            snapshot.tokens.clear();
        }
        Some(index)
    }

    /// Makes a reserved place findable as the state after these tokens; `None` if the name is taken.
    pub fn register(&mut self, index: u32, name: u64, tokens: &[u32]) -> Option<SnapshotId> {
        if self.by_name.contains_key(&name) {
            self.give_back(index);
            return None;
        }
        self.by_name.insert(name, index);
        let snapshot = &mut self.snapshots[index as usize];
        snapshot.name = name;
        snapshot.tokens.extend_from_slice(tokens);
        self.touch(index);
        Some(SnapshotId { index, generation: self.generation })
    }

    /// Takes a reserved place back.
    pub fn give_back(&mut self, index: u32) {
        self.free.push(index);
    }

    pub fn forget_all(&mut self) {
        while let Some(index) = self.kept.pop() {
            let snapshot = &mut self.snapshots[index as usize];
            self.by_name.remove(&snapshot.name);
            snapshot.tokens.clear();
            self.free.push(index);
        }
    }

    /// Panics where a place is neither free nor kept while none is about to be written.
    pub fn audit(&self) {
        assert_eq!(self.free.len() + self.kept.len(), self.snapshots.len(), "a snapshot is lost");
        assert_eq!(self.by_name.len(), self.kept.len(), "a snapshot is kept that cannot be found");
        for (&name, &index) in &self.by_name {
            let snapshot = &self.snapshots[index as usize];
            assert!(self.kept.contains(index) && snapshot.name == name && !snapshot.tokens.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut pool = SnapshotPool::new(5, 2);
        let [a, b] = [pool.reserve(None).unwrap(), pool.reserve(None).unwrap()];
        assert_eq!((pool.slot(a), pool.slot(b), pool.reserve(None)), (5, 6, None));
        pool.register(a, 10, &[1, 2]).unwrap();
        pool.register(b, 20, &[1, 2, 3, 4]).unwrap();
        pool.touch(a);
        pool.audit();
        let next = pool.reserve(None).unwrap();
        assert_eq!(next, b);
        assert_eq!((pool.find(10, &[1, 2]), pool.find(20, &[1, 2, 3, 4])), (Some(a), None));
        pool.give_back(next);
        pool.audit();
        pool.forget_all();
        assert_eq!((pool.find(10, &[1, 2]), pool.kept()), (None, 0));
        pool.audit();
    }

    #[test]
    fn ones_own_is_replaced_until_another_has_used_it() {
        let mut pool = SnapshotPool::new(0, 3);
        let index = pool.reserve(None).unwrap();
        let own = pool.register(index, 10, &[1]).unwrap();
        assert_eq!(pool.reserve(Some(own)), Some(index));
        assert_eq!(pool.find(10, &[1]), None, "it is about to be another");
        let own = pool.register(index, 20, &[1, 2]).unwrap();
        pool.touch(index);
        let other = pool.reserve(Some(own)).unwrap();
        assert_ne!(other, index);
        assert_eq!(pool.find(20, &[1, 2]), Some(index));
        pool.give_back(other);
    }

    #[test]
    fn a_name_alone_proves_nothing() {
        let mut pool = SnapshotPool::new(0, 2);
        let index = pool.reserve(None).unwrap();
        pool.register(index, 10, &[1]).unwrap();
        assert_eq!(pool.find(10, &[2]), None);
        let other = pool.reserve(None).unwrap();
        assert_eq!(pool.register(other, 10, &[2]), None);
        pool.audit();
    }
}
