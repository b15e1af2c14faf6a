//! Copies of recurrent state at the ends of blocks, in slots behind those of the running sequences.
//!
//! Keys and values are kept for every position; a recurrent state is only what all tokens so far have made of it. So that
//! a sequence can begin where another one was, states are copied on the way, and found again by the tokens that they have
//! seen: of these a digest is kept that no two beginnings share, so that a snapshot of a long text takes no more than one of
//! a short one.

use std::collections::HashMap;

use crate::lru::Lru;
use crate::prefix::Beginning;

/// A snapshot as long as nobody else has made use of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SnapshotId {
    index: u32,
    generation: u64,
}

#[derive(Default)]
struct Snapshot {
    /// What the state has seen; `None` while it is no snapshot.
    seen: Option<Beginning>,
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

    /// The snapshot of the state after this beginning.
    pub fn find(&self, seen: &Beginning) -> Option<u32> {
        let &index = self.by_name.get(&seen.name)?;
        (self.snapshots[index as usize].seen.as_ref() == Some(seen)).then_some(index)
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
        self.forget(index);
        Some(index)
    }

    /// Makes a reserved place findable as the state after this beginning; `None` if its name is taken.
    pub fn register(&mut self, index: u32, seen: Beginning) -> Option<SnapshotId> {
        if self.by_name.contains_key(&seen.name) {
            self.give_back(index);
            return None;
        }
        self.by_name.insert(seen.name, index);
        self.snapshots[index as usize].seen = Some(seen);
        self.touch(index);
        Some(SnapshotId { index, generation: self.generation })
    }

    /// Takes a reserved place back.
    pub fn give_back(&mut self, index: u32) {
        self.free.push(index);
    }

    pub fn forget_all(&mut self) {
        while let Some(index) = self.kept.pop() {
            self.forget(index);
            self.free.push(index);
        }
    }

    fn forget(&mut self, index: u32) {
        if let Some(seen) = self.snapshots[index as usize].seen.take() {
            self.by_name.remove(&seen.name);
        }
    }

    /// Says what is wrong where a place is not either free or kept, while none is about to be written, or where a snapshot
    /// cannot be found.
    pub fn audit(&self) -> Result<(), String> {
        let mut times_found = vec![0; self.snapshots.len()];
        for index in self.free.iter().copied().chain(self.kept.iter()) {
            *times_found.get_mut(index as usize).ok_or_else(|| format!("there is no snapshot {index}"))? += 1;
        }
        if let Some(index) = times_found.iter().position(|&times| times != 1) {
            return Err(format!("snapshot {index} is free or kept {} times", times_found[index]));
        }
        if let Some(index) = self.free.iter().find(|&&index| self.snapshots[index as usize].seen.is_some()) {
            return Err(format!("snapshot {index} is free and can be found"));
        }
        for index in self.kept.iter() {
            let seen = self.snapshots[index as usize].seen.as_ref();
            if seen.and_then(|seen| self.by_name.get(&seen.name)) != Some(&index) {
                return Err(format!("snapshot {index} is kept and cannot be found"));
            }
        }
        if self.by_name.len() != self.kept() || self.kept.iter().count() != self.kept() {
            return Err(format!("{} names lead to {} snapshots", self.by_name.len(), self.kept()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: u64, tokens: &[u32]) -> Beginning {
        Beginning { name, digest: Beginning::EMPTY_DIGEST.and(tokens) }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut pool = SnapshotPool::new(5, 2);
        let [a, b] = [pool.reserve(None).unwrap(), pool.reserve(None).unwrap()];
        assert_eq!((pool.slot(a), pool.slot(b), pool.reserve(None)), (5, 6, None));
        pool.register(a, seen(10, &[1, 2])).unwrap();
        pool.register(b, seen(20, &[1, 2, 3, 4])).unwrap();
        pool.touch(a);
        pool.audit().unwrap();
        let next = pool.reserve(None).unwrap();
        assert_eq!(next, b);
        assert_eq!((pool.find(&seen(10, &[1, 2])), pool.find(&seen(20, &[1, 2, 3, 4]))), (Some(a), None));
        pool.give_back(next);
        pool.audit().unwrap();
        pool.forget_all();
        assert_eq!((pool.find(&seen(10, &[1, 2])), pool.kept()), (None, 0));
        pool.audit().unwrap();
    }

    #[test]
    fn ones_own_is_replaced_until_another_has_used_it() {
        let mut pool = SnapshotPool::new(0, 3);
        let index = pool.reserve(None).unwrap();
        let own = pool.register(index, seen(10, &[1])).unwrap();
        assert_eq!(pool.reserve(Some(own)), Some(index));
        assert_eq!(pool.find(&seen(10, &[1])), None, "it is about to be another");
        let own = pool.register(index, seen(20, &[1, 2])).unwrap();
        pool.touch(index);
        let other = pool.reserve(Some(own)).unwrap();
        assert_ne!(other, index);
        assert_eq!(pool.find(&seen(20, &[1, 2])), Some(index));
        pool.give_back(other);
    }

    #[test]
    fn a_snapshot_of_a_long_text_takes_no_more_than_one_of_a_short_one() {
        assert!(!std::mem::needs_drop::<Snapshot>(), "there is nothing of it anywhere else");
        assert!(size_of::<Snapshot>() <= 64);
    }

    #[test]
    fn a_name_alone_proves_nothing() {
        let mut pool = SnapshotPool::new(0, 2);
        let index = pool.reserve(None).unwrap();
        pool.register(index, seen(10, &[1])).unwrap();
        assert_eq!(pool.find(&seen(10, &[2])), None);
        let other = pool.reserve(None).unwrap();
        assert_eq!(pool.register(other, seen(10, &[2])), None);
        pool.audit().unwrap();
    }

    /// A word of what must be said, and a way to spoil the books.
    type Corruption = (&'static str, fn(&mut SnapshotPool));

    #[test]
    fn whatever_is_wrong_is_found() {
        let corruptions: [Corruption; 7] = [
            ("snapshot 2 is free or kept 0 times", |pool| {
                pool.free.pop();
            }),
            ("snapshot 0 is free or kept 0 times", |pool| {
                pool.kept.pop();
            }),
            ("snapshot 1 is free or kept 2 times", |pool| pool.free.push(1)),
            ("free and can be found", |pool| {
                pool.kept.remove(0);
                pool.free.push(0);
            }),
            ("kept and cannot be found", |pool| {
                pool.by_name.insert(10, 2);
            }),
            ("kept and cannot be found", |pool| pool.snapshots[1].seen = None),
            ("3 names lead to 2", |pool| {
                pool.by_name.insert(30, 2);
            }),
        ];
        for (word, corrupt) in corruptions {
            let mut pool = SnapshotPool::new(7, 3);
            for name in [10, 20] {
                let index = pool.reserve(None).unwrap();
                pool.register(index, seen(name, &[name as u32])).unwrap();
            }
            pool.audit().unwrap();
            corrupt(&mut pool);
            let said = pool.audit().expect_err(word);
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}
