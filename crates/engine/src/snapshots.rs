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

/// What a snapshot is worth. Those worth the least are given up first, and of these the one used least recently.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Worth {
    /// Near a prompt's end, in case that another prompt has all but the last of it.
    NearEnd,
    /// On the way through a prompt, where another may leave it.
    Stride,
    /// Where a prompt or an answer ended and is likely to go on, or what proved to be of use.
    End,
}

const WORTHS: [Worth; 3] = [Worth::NearEnd, Worth::Stride, Worth::End];

#[derive(Default)]
struct Snapshot {
    /// What the state has seen; `None` while it is no snapshot.
    seen: Option<Beginning>,
    generation: u64,
    /// Whether somebody has begun here.
    is_used: bool,
}

pub(crate) struct SnapshotPool {
    first_slot: u32,
    snapshots: Vec<Snapshot>,
    /// Slots without a snapshot that are not about to be written.
    free: Vec<u32>,
    /// By what they are worth.
    kept: [Lru; WORTHS.len()],
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
            kept: WORTHS.map(|_| Lru::new(count)),
            by_name: HashMap::with_capacity(count),
            generation: 0,
        }
    }

    pub fn total(&self) -> usize {
        self.snapshots.len()
    }

    pub fn kept(&self) -> usize {
        self.kept.iter().map(Lru::len).sum()
    }

    fn worth(&self, index: u32) -> Option<Worth> {
        WORTHS.into_iter().find(|&worth| self.kept[worth as usize].contains(index))
    }

    pub fn slot(&self, index: u32) -> u32 {
        self.first_slot + index
    }

    /// The snapshot of the state after this beginning.
    pub fn find(&self, seen: &Beginning) -> Option<u32> {
        let &index = self.by_name.get(&seen.name)?;
        (self.snapshots[index as usize].seen.as_ref() == Some(seen)).then_some(index)
    }

    /// Notes that another has come by a snapshot, to whom it is worth this much: it belongs to nobody alone, and of its
    /// like it is the last to go.
    pub fn touch(&mut self, index: u32, worth: Worth) {
        let worth = self.worth(index).map_or(worth, |before| before.max(worth));
        self.kept.iter_mut().for_each(|kept| kept.remove(index));
        self.kept[worth as usize].push(index);
        self.generation += 1;
        self.snapshots[index as usize].generation = self.generation;
    }

    /// Notes that somebody begins at a snapshot. The first to begin at an end is most likely the next turn of a chat, which
    /// leaves ends of its own; so this one goes no later for it. Were it otherwise, the turns of some chats would take
    /// the places of others that have not had theirs.
    pub fn begin_at(&mut self, index: u32) {
        let was_used = std::mem::replace(&mut self.snapshots[index as usize].is_used, true);
        if was_used || self.worth(index) != Some(Worth::End) {
            self.touch(index, Worth::End);
        } else {
            self.generation += 1;
            self.snapshots[index as usize].generation = self.generation;
        }
    }

    /// Whether a new snapshot can have a place that nothing of more worth loses.
    pub fn has_place_near_end(&self) -> bool {
        !self.free.is_empty() || self.kept[Worth::NearEnd as usize].len() > 0
    }

    /// A place for a new snapshot: the caller's own earlier one, a free one, or the one that is worth the least. It must be
    /// registered or given back. As a stride takes an end's place only where no stride has one, strides have one such
    /// place at most.
    pub fn reserve(&mut self, own: Option<SnapshotId>) -> Option<u32> {
        let is_own = |own: &SnapshotId| self.snapshots[own.index as usize].generation == own.generation;
        let own = own.filter(|own| is_own(own) && self.worth(own.index).is_some()).map(|own| own.index);
        let index = own.or_else(|| self.free.pop()).or_else(|| self.kept.iter_mut().find_map(Lru::pop))?;
        self.kept.iter_mut().for_each(|kept| kept.remove(index));
        self.forget(index);
        Some(index)
    }

    /// Makes a reserved place findable as the state after this beginning; `None` if its name is taken.
    pub fn register(&mut self, index: u32, seen: Beginning, worth: Worth) -> Option<SnapshotId> {
        if self.by_name.contains_key(&seen.name) {
            self.give_back(index);
            return None;
        }
        self.by_name.insert(seen.name, index);
        self.snapshots[index as usize] = Snapshot { seen: Some(seen), ..Snapshot::default() };
        self.touch(index, worth);
        Some(SnapshotId { index, generation: self.generation })
    }

    /// Takes a reserved place back.
    pub fn give_back(&mut self, index: u32) {
        self.free.push(index);
    }

    pub fn forget_all(&mut self) {
        while let Some(index) = self.kept.iter_mut().find_map(Lru::pop) {
            self.forget(index);
            self.free.push(index);
        }
    }

    /// Gives up the snapshot of the state after this beginning, if there is one.
    pub fn forget_state(&mut self, seen: &Beginning) {
        if let Some(index) = self.find(seen) {
            self.kept.iter_mut().for_each(|kept| kept.remove(index));
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
        let kept = || self.kept.iter().flat_map(Lru::iter);
        for index in self.free.iter().copied().chain(kept()) {
            *times_found.get_mut(index as usize).ok_or_else(|| format!("there is no snapshot {index}"))? += 1;
        }
        if let Some(index) = times_found.iter().position(|&times| times != 1) {
            return Err(format!("snapshot {index} is free or kept {} times", times_found[index]));
        }
        if let Some(index) = self.free.iter().find(|&&index| self.snapshots[index as usize].seen.is_some()) {
            return Err(format!("snapshot {index} is free and can be found"));
        }
        for index in kept() {
            let seen = self.snapshots[index as usize].seen.as_ref();
            if seen.and_then(|seen| self.by_name.get(&seen.name)) != Some(&index) {
                return Err(format!("snapshot {index} is kept and cannot be found"));
            }
        }
        if self.by_name.len() != self.kept() || kept().count() != self.kept() {
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
        pool.register(a, seen(10, &[1, 2]), Worth::End).unwrap();
        pool.register(b, seen(20, &[1, 2, 3, 4]), Worth::End).unwrap();
        pool.touch(a, Worth::End);
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
        let own = pool.register(index, seen(10, &[1]), Worth::End).unwrap();
        assert_eq!(pool.reserve(Some(own)), Some(index));
        assert_eq!(pool.find(&seen(10, &[1])), None, "it is about to be another");
        let own = pool.register(index, seen(20, &[1, 2]), Worth::End).unwrap();
        pool.touch(index, Worth::End);
        let other = pool.reserve(Some(own)).unwrap();
        assert_ne!(other, index);
        assert_eq!(pool.find(&seen(20, &[1, 2])), Some(index));
        pool.give_back(other);
    }

    #[test]
    fn strides_go_before_ends() {
        let mut pool = SnapshotPool::new(0, 3);
        let keep = |pool: &mut SnapshotPool, name, worth| {
            let index = pool.reserve(None).unwrap();
            pool.register(index, seen(name, &[name as u32]), worth).unwrap();
            pool.audit().unwrap();
        };
        let is_kept = |pool: &SnapshotPool, name| pool.find(&seen(name, &[name as u32])).is_some();
        keep(&mut pool, 1, Worth::End);
        keep(&mut pool, 2, Worth::Stride);
        keep(&mut pool, 3, Worth::Stride);
        keep(&mut pool, 4, Worth::Stride);
        assert_eq!([1, 2, 3, 4].map(|name| is_kept(&pool, name)), [true, false, true, true]);
        pool.begin_at(pool.find(&seen(3, &[3])).unwrap());
        keep(&mut pool, 5, Worth::End);
        assert_eq!([1, 3, 4, 5].map(|name| is_kept(&pool, name)), [true, true, false, true], "3 is of use");
        // An end is no later to go for its first use, and is for the next.
        pool.begin_at(pool.find(&seen(1, &[1])).unwrap());
        keep(&mut pool, 6, Worth::Stride);
        keep(&mut pool, 7, Worth::Stride);
        assert_eq!([1, 3, 5, 6, 7].map(|name| is_kept(&pool, name)), [false, true, true, false, true]);
        (0..2).for_each(|_| pool.begin_at(pool.find(&seen(3, &[3])).unwrap()));
        keep(&mut pool, 8, Worth::End);
        keep(&mut pool, 9, Worth::End);
        assert_eq!([3, 5, 7, 8, 9].map(|name| is_kept(&pool, name)), [true, false, false, true, true]);
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
        pool.register(index, seen(10, &[1]), Worth::End).unwrap();
        assert_eq!(pool.find(&seen(10, &[2])), None);
        let other = pool.reserve(None).unwrap();
        assert_eq!(pool.register(other, seen(10, &[2]), Worth::End), None);
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
                pool.kept[2].pop();
            }),
            ("snapshot 1 is free or kept 2 times", |pool| pool.free.push(1)),
            ("free and can be found", |pool| {
                pool.kept[2].remove(0);
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
                pool.register(index, seen(name, &[name as u32]), Worth::End).unwrap();
            }
            pool.audit().unwrap();
            corrupt(&mut pool);
            let said = pool.audit().expect_err(word);
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}
