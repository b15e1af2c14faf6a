//! Who of those that wait may begin.

use std::time::Instant;

use exotherm_kernels::BLOCK;

use super::Scheduler;
use super::plan::{Fork, Plan, Sample, StateCopy};
use crate::blocks::PrefixId;
use crate::sequence::Sequence;

/// How the first in line can begin.
enum Start {
    /// With its own prompt, as far as that is not known.
    Prompt,
    /// Where this other choice of the same prompt is after the step, with the logits that it gets.
    Fork(Sample),
}

impl Scheduler {
    /// Lets waiting requests in, in their order: nobody goes past one that has no place, no room or no rows yet. The other
    /// choices of a prompt that nobody has read to its end are in nobody's way.
    pub(super) fn admit(&mut self, plan: &mut Plan, left: &mut usize, now: Instant) {
        while let Some(place) = self.free_place()
            && let Some((next, start)) = self.first_in_line(plan)
        {
            let is_let_in = match start {
                Start::Prompt => *left > 0 && self.begin(next, place, plan, left, now),
                Start::Fork(from) => self.begin_fork(next, from, place, plan, now),
            };
            if !is_let_in {
                break;
            }
        }
    }

    /// The first of those that wait and are not to wait for another choice of their prompt.
    fn first_in_line(&self, plan: &Plan) -> Option<(usize, Start)> {
        self.waiting.iter().enumerate().find_map(|(i, sequence)| {
            let Some(leader) = sequence.leader else { return Some((i, Start::Prompt)) };
            let is_read = |sample: &&Sample| {
                let of = self.at(sample.place);
                of.id == leader && of.tokens.len() == sample.position as usize
            };
            let read = plan.samples.iter().find(is_read)?;
            Some((i, Start::Fork(*read)))
        })
    }

    /// Lets a waiting sequence begin with its prompt; false where it has no room.
    fn begin(&mut self, next: usize, place: u32, plan: &mut Plan, left: &mut usize, now: Instant) -> bool {
        let (id, snapshot) = self.find_prefix(next);
        if !self.has_room_for(next, plan) {
            return false;
        }
        let Some(mut sequence) = self.waiting.remove(next) else { return false };
        let known = match snapshot {
            Some((tokens, index)) => {
                self.snapshots.begin_at(index);
                plan.before.push(StateCopy::Slot { from: self.snapshots.slot(index), to: place });
                tokens
            }
            None => self.hits.len() * BLOCK,
        };
        self.hits.iter().for_each(|&block| self.pool.hold(block));
        sequence.blocks.extend_from_slice(&self.hits);
        sequence.computed = known;
        (sequence.prefix.registered, sequence.prefix.id) = (self.hits.len(), id);
        self.find_common(&mut sequence, known);
        self.count_prompt(&mut sequence, known);
        self.places[place as usize] = Some(sequence);
        self.start(place);
        let len = self.fitting(place, self.next_rows(place, *left, plan));
        self.add_row(place, len, plan, now);
        *left -= len;
        true
    }

    /// Lets another choice of a prompt that the step reads to its end begin there; false where it has no room.
    fn begin_fork(&mut self, next: usize, from: Sample, place: u32, plan: &mut Plan, now: Instant) -> bool {
        if !self.has_room_for_fork(next, plan) {
            return false;
        }
        let Some(mut follower) = self.waiting.remove(next) else { return false };
        follower.leader = None;
        follower.started.get_or_insert(now);
        self.count_fork(&mut follower);
        self.places[place as usize] = Some(follower);
        plan.samples.push(Sample { place, ..from });
        plan.forks.push(Fork { from: from.place, to: place });
        if self.sizes.is_recurrent {
            plan.after.push(StateCopy::Slot { from: from.place, to: place });
        }
        true
    }

    /// Finds how far a prompt is that of an earlier one, when it begins for the first time: where that is further than what
    /// is known, a state is to be kept there, because there may be a third.
    fn find_common(&mut self, sequence: &mut Sequence, known: usize) {
        if self.sizes.snapshots == 0 || sequence.cached.is_some() || sequence.embedding.is_some() {
            return;
        }
        let blocks = (sequence.prompt_len - 1) / BLOCK;
        let common = (known / BLOCK..blocks).rev().find(|&i| self.names.has(sequence.name(i, self.chain)));
        sequence.common = common.map(|i| (i + 1) * BLOCK);
        (0..blocks).for_each(|i| self.names.note(sequence.name(i, self.chain)));
    }

    /// Notes what of a prompt need not be run, when it begins for the first time.
    fn count_prompt(&mut self, sequence: &mut Sequence, known: usize) {
        if sequence.cached.is_none() {
            sequence.cached = Some(known);
            self.counts.prompt_tokens += sequence.prompt_len as u64;
            self.counts.cached_tokens += known as u64;
            if sequence.embedding.is_some() {
                self.counts.embedded_tokens += sequence.prompt_len as u64;
            }
        }
    }

    fn count_fork(&mut self, sequence: &mut Sequence) {
        sequence.is_fork = true;
        sequence.cached = Some(sequence.prompt_len);
        self.counts.forks += 1;
        self.counts.forked_tokens += sequence.prompt_len as u64;
    }

    /// Finds the longest beginning of a waiting sequence whose state is there, as whole blocks: `hits` are its blocks;
    /// what is given is its name, and where there is recurrent state, the tokens and the snapshot. Tokens whose logits are
    /// wanted always run.
    fn find_prefix(&mut self, waiting: usize) -> (PrefixId, Option<(usize, u32)>) {
        self.hits.clear();
        let sequence = &mut self.waiting[waiting];
        let mut blocks = sequence.passable() / BLOCK;
        let mut id = PrefixId::EMPTY;
        let mut ids = id;
        if self.sizes.has_kv {
            for i in 0..blocks {
                let name = sequence.name(i, self.chain);
                let Some((block, next)) = self.pool.find(name, ids, sequence.block_tokens(i)) else { break };
                self.hits.push(block);
                ids = next;
            }
            blocks = self.hits.len();
            id = ids;
        }
        if !self.sizes.is_recurrent {
            return (id, None);
        }
        if self.sizes.snapshots == 0 {
            self.hits.clear();
            return (PrefixId::EMPTY, None);
        }
        let found = (1..=blocks).rev().find_map(|n| {
            let index = self.snapshots.find(&sequence.beginning(n - 1, self.chain))?;
            Some((n * BLOCK, index))
        });
        let known = found.map_or(0, |(tokens, _)| tokens / BLOCK);
        if known < self.hits.len() {
            self.hits.truncate(known);
            id = self.hits.last().map_or(PrefixId::EMPTY, |&block| self.pool.id(block));
        }
        (id, found)
    }

    /// Whether there are blocks for a waiting sequence, of which `hits` are there already, beside what the others still need.
    fn has_room_for(&self, waiting: usize, plan: &Plan) -> bool {
        if !self.sizes.has_kv {
            return true;
        }
        let unheld = self.hits.iter().filter(|&&block| self.pool.holders(block) == 0).count();
        let wanted = self.blocks_for(self.waiting[waiting].needs(1)) - self.hits.len() + unheld;
        wanted + self.promised(plan) <= self.pool.available()
    }

    /// Whether there is a block for one more choice of a prompt beside what the others still need: the one it writes to
    /// first, as a copy of the prompt's last if that is not full.
    fn has_room_for_fork(&self, waiting: usize, plan: &Plan) -> bool {
        let sequence = &self.waiting[waiting];
        let writes = sequence.needs(1) > sequence.prompt_len;
        !self.sizes.has_kv || usize::from(writes) + self.promised(plan) <= self.pool.available()
    }

    /// Blocks that the sequences that run still need for their prompts and to go on for a while, and those that the plan
    /// forks.
    fn promised(&self, plan: &Plan) -> usize {
        let needs = |sequence: &Sequence| self.blocks_for(sequence.needs(BLOCK));
        let running = self.running.iter().map(|&place| {
            let sequence = self.at(place);
            needs(sequence).saturating_sub(sequence.blocks.len()) + usize::from(self.shares_next(place))
        });
        let forks = plan.forks.iter().map(|fork| {
            // It shares the full blocks of the prompt.
            let sequence = self.at(fork.to);
            needs(sequence).saturating_sub(sequence.prompt_len / BLOCK)
        });
        running.chain(forks).sum()
    }
}
