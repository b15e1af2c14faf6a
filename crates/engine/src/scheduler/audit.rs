//! All books gone through.

use super::Scheduler;

impl Scheduler {
    /// Says what is wrong where blocks, snapshots or sequences are not where they should be. Not while a step is under way.
    pub fn audited(&self) -> Result<(), String> {
        if let Some(waits) = self.waiting.iter().find(|s| !s.blocks.is_empty()) {
            return Err(format!("{} waits and has blocks", waits.id));
        }
        self.pool.audit(self.places.iter().flatten().map(|s| s.blocks.as_slice()))?;
        self.snapshots.audit()?;
        for sequence in self.places.iter().flatten() {
            let (has, needs) = (sequence.blocks.len(), self.blocks_for(sequence.computed));
            if has < needs {
                return Err(format!("{} has {has} blocks for {needs}", sequence.id));
            }
        }
        let placed = (0..).zip(&self.places).filter(|(_, place)| place.is_some()).map(|(place, _)| place);
        let mut running = self.running.clone();
        running.sort_unstable();
        if !placed.eq(running) {
            return Err("a sequence has a place and does not run, or the other way".into());
        }
        let is_ordered = self.waiting.iter().is_sorted_by(|before, after| before.rank < after.rank)
            && self.running.is_sorted_by(|&before, &after| self.at(before).rank < self.at(after).rank);
        if is_ordered { Ok(()) } else { Err("sequences are out of order".into()) }
    }

    /// Goes through all books, in debug builds.
    pub(super) fn audit(&self) {
        if cfg!(debug_assertions)
            && let Err(wrong) = self.audited()
        {
            panic!("{wrong}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use exotherm_kernels::{BLOCK, Sampled};

    use super::*;
    use crate::config::EngineConfig;
    use crate::request::Request;
    use crate::simulator::model::{Fake, State, program};

    /// A word of what must be said, and a way to spoil the books.
    type Corruption = (&'static str, fn(&mut Scheduler));

    /// Two sequences that run, of two blocks each, and one that waits.
    fn busy() -> Scheduler {
        let (program, now) = (program(State::Both), Instant::now());
        let config = EngineConfig { max_seqs: 2, ..EngineConfig::new(64) };
        let limits = config.limits(&program, &Fake::default()).unwrap();
        let mut scheduler = Scheduler::new(&program, &config, &limits);
        scheduler.submit(&[1, 2, 3].map(|token| Request::new(vec![token; BLOCK + 1], 9)), now).unwrap();
        // The first step ends with the first block, where a snapshot is made.
        let plan = scheduler.plan(now).unwrap();
        scheduler.commit(plan, &[], now, &mut Vec::new());
        let plan = scheduler.plan(now).unwrap();
        let sampled = [4, 5].map(|token| Sampled { token: Some(token), logprobs: None });
        scheduler.commit(plan, &sampled, now, &mut Vec::new());
        scheduler
    }

    #[test]
    fn whatever_is_wrong_is_found() {
        let corruptions: [Corruption; 7] = [
            ("blocks for", |s| {
                let block = s.at_mut(0).blocks.pop().unwrap();
                s.pool.release(block);
            }),
            ("counts 1 holders and has 0", |s| {
                s.at_mut(1).blocks.pop();
            }),
            ("has a place and does not run", |s| {
                s.running.pop();
            }),
            ("has a place and does not run", |s| s.running[0] = s.running[1]),
            ("waits and has blocks", |s| {
                let block = s.pool.take().unwrap();
                s.waiting[0].blocks.push(block);
            }),
            ("out of order", |s| s.running.swap(0, 1)),
            ("snapshot", |s| {
                s.snapshots.reserve(None);
            }),
        ];
        assert_eq!(busy().audited(), Ok(()));
        for (word, corrupt) in corruptions {
            let mut scheduler = busy();
            corrupt(&mut scheduler);
            let said = scheduler.audited().expect_err(word);
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}
