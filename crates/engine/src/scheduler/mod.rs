//! The only one that moves sequences: decides what runs, and takes in what came of it.

mod admit;
mod audit;
mod bounds;
mod commit;
mod plan;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use exotherm_kernels::{BLOCK, Limits, Program};

use crate::blocks::{BlockPool, Books};
use crate::config::EngineConfig;
use crate::error::EngineError;
use crate::prefix::{Chain, Names, chained};
use crate::request::{Event, FinishReason, Request, RequestId, TokenLogprobs};
use crate::sequence::{Rank, Sequence};
use crate::snapshots::SnapshotPool;
pub(crate) use bounds::Bounds;
pub(crate) use plan::{Plan, StateCopy};

/// Steps of waiting that a level of priority is worth.
const AGEING_STEPS: i64 = 64;

/// Beginnings that are known to have been asked for: of half a million tokens, in 256 KiB.
const KNOWN_NAMES: usize = 1 << 15;

/// What the scheduler has at the moment, and has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SchedulerStats {
    pub waiting: usize,
    pub running: usize,
    /// Steps that were begun, those that found nothing to run among them.
    pub steps: u64,
    /// Times that a sequence gave its blocks back to others.
    pub preemptions: u64,
    /// Tokens of all prompts that began to run; a prompt of several choices counts once, unless it had to be read again.
    pub prompt_tokens: u64,
    /// Those of them whose state was there already.
    pub cached_tokens: u64,
    /// Those of them that are texts to be embedded, of which no state is ever used again.
    pub embedded_tokens: u64,
    /// Choices that began where the first of their request was, and the tokens of their prompts. These are in no other
    /// number.
    pub forks: u64,
    pub forked_tokens: u64,
    pub books: Books,
    /// Recurrent states that are remembered, and that there is room for.
    pub snapshots: usize,
    pub snapshots_total: usize,
}

pub(crate) struct Scheduler {
    sizes: Sizes,
    bounds: Bounds,
    chain: Chain,
    pool: BlockPool,
    snapshots: SnapshotPool,
    /// Beginnings of the prompts so far, where states are kept.
    names: Names,
    /// Running sequences; a place is a slot of recurrent state, too.
    places: Vec<Option<Sequence>>,
    /// Places of the running ones, those that come first first.
    running: Vec<u32>,
    /// In the same order.
    waiting: VecDeque<Sequence>,
    /// What was counted so far.
    counts: SchedulerStats,
    last_id: u64,
    /// A plan that was committed, whose memory is for the next.
    spare: Plan,
    /// Blocks found for the sequence that is about to be let in.
    hits: Vec<u32>,
    /// Whether something is being moved, so that a panic meanwhile leaves things nowhere.
    is_moving: bool,
}

struct Sizes {
    chunk: usize,
    logit_rows: usize,
    blocks: usize,
    snapshots: usize,
    snapshot_stride: usize,
    has_kv: bool,
    is_recurrent: bool,
}

impl Scheduler {
    pub fn new(program: &Program, config: &EngineConfig, limits: &Limits) -> Scheduler {
        let is_recurrent = !program.state().recurrent.is_empty();
        let sizes = Sizes {
            chunk: config.chunk,
            logit_rows: limits.logit_rows,
            blocks: limits.blocks,
            snapshots: if is_recurrent { config.snapshots } else { 0 },
            snapshot_stride: config.snapshot_stride,
            has_kv: !program.state().kv.is_empty(),
            is_recurrent,
        };
        Scheduler {
            bounds: Bounds::new(program, config, limits),
            chain: chained,
            pool: BlockPool::new(sizes.blocks),
            snapshots: SnapshotPool::new(config.max_seqs, sizes.snapshots),
            names: Names::new(if sizes.snapshots > 0 { KNOWN_NAMES } else { 0 }),
            places: (0..config.max_seqs).map(|_| None).collect(),
            running: Vec::with_capacity(config.max_seqs),
            waiting: VecDeque::new(),
            counts: SchedulerStats::default(),
            last_id: 0,
            spare: Plan::default(),
            hits: Vec::new(),
            is_moving: false,
            sizes,
        }
    }

    /// Names beginnings in another way, so that different ones have the same name more often than by accident.
    #[cfg(test)]
    pub fn set_chain(&mut self, chain: Chain) {
        self.chain = chain;
    }

    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Queues requests, all of them or none, a sequence for each of their choices; gives the name of the first choice of
    /// each.
    pub fn submit(&mut self, requests: &[Request], now: Instant) -> Result<Vec<RequestId>, EngineError> {
        requests.iter().try_for_each(|request| self.bounds.check(request))?;
        let (running, waiting) = (self.running.len(), self.waiting.len());
        let choices = requests.iter().map(|request| request.n).fold(0, usize::saturating_add);
        self.bounds.check_room(running, waiting, choices)?;
        Ok(self.moving(|this| requests.iter().map(|request| this.queue(request, now)).collect()))
    }

    fn queue(&mut self, request: &Request, now: Instant) -> RequestId {
        let first = RequestId(self.last_id + 1);
        let since = self.counts.steps as i64 - i64::from(request.priority) * AGEING_STEPS;
        for i in 0..request.n {
            let id = first.choice(i);
            let mut choice = request.clone();
            choice.sampling.seed = choice.sampling.seed.wrapping_add(i as u64);
            let mut sequence = Sequence::new(id, Rank { since, id }, choice, now);
            sequence.leader = (i > 0).then_some(first);
            self.wait(sequence);
        }
        self.last_id += request.n as u64;
        first
    }

    /// Moves things; a panic meanwhile leaves them nowhere, and that is remembered.
    fn moving<T>(&mut self, act: impl FnOnce(&mut Scheduler) -> T) -> T {
        let before = std::mem::replace(&mut self.is_moving, true);
        let result = act(self);
        self.is_moving = before;
        result
    }

    /// Whether something panicked while things were being moved.
    pub fn broke_off(&self) -> bool {
        self.is_moving
    }

    fn wait(&mut self, sequence: Sequence) {
        let at = self.waiting.partition_point(|other| other.rank < sequence.rank);
        self.waiting.insert(at, sequence);
    }

    /// Counts a place among the running ones.
    fn start(&mut self, place: u32) {
        let rank = self.at(place).rank;
        let at = self.running.partition_point(|&other| self.at(other).rank < rank);
        self.running.insert(at, place);
    }

    /// Ends a request that waits or runs, with everything it has.
    pub fn cancel(&mut self, id: RequestId, now: Instant) -> Option<Event> {
        self.moving(|this| this.end_named(id, FinishReason::Cancelled, now))
    }

    /// Ends the requests whose deadlines have passed.
    pub fn expire(&mut self, now: Instant, events: &mut Vec<Event>) {
        let is_late = |s: &&Sequence| s.deadline.is_some_and(|deadline| deadline <= now);
        while let Some(late) = self.waiting.iter().chain(self.places.iter().flatten()).find(is_late) {
            let id = late.id;
            events.extend(self.moving(|this| this.end_named(id, FinishReason::Deadline, now)));
        }
    }

    fn end_named(&mut self, id: RequestId, reason: FinishReason, now: Instant) -> Option<Event> {
        if let Some(i) = self.waiting.iter().position(|s| s.id == id) {
            let stats = self.waiting.remove(i)?.stats(now);
            self.free_followers(id, &Arc::default());
            return Some(Event::Finished { id, reason, stats, fault: None });
        }
        let place = self.places.iter().position(|p| p.as_ref().is_some_and(|s| s.id == id))?;
        let event = self.end(place as u32, reason, None, now);
        self.audit();
        Some(event)
    }

    fn end(&mut self, place: u32, reason: FinishReason, fault: Option<Arc<str>>, now: Instant) -> Event {
        let sequence = self.take_out(place);
        self.free_followers(sequence.id, &Arc::default());
        Event::Finished { id: sequence.id, reason, stats: sequence.stats(now), fault }
    }

    /// Other choices of the same prompt need not wait for this one any more; they know of the prompt what it knows.
    fn free_followers(&mut self, leader: RequestId, log: &Arc<Vec<TokenLogprobs>>) {
        for follower in self.waiting.iter_mut().filter(|s| s.leader == Some(leader)) {
            (follower.leader, follower.prompt_log) = (None, Arc::clone(log));
        }
    }

    /// Takes a sequence out of its place; its blocks are let go of, and what of them is registered can still be found.
    fn take_out(&mut self, place: u32) -> Sequence {
        self.running.retain(|&p| p != place);
        let mut sequence = self.places[place as usize].take().expect("a running sequence has its place");
        self.pool.release_all(&mut sequence.blocks);
        sequence
    }

    /// Makes a running sequence wait again, to be computed anew with the tokens it has got so far.
    fn preempt(&mut self, place: u32) {
        let mut sequence = self.take_out(place);
        sequence.computed = 0;
        sequence.prefix.restart();
        sequence.preemptions += 1;
        self.counts.preemptions += 1;
        self.wait(sequence);
    }

    /// Lets everything be forgotten that no running sequence uses.
    pub fn forget_prefixes(&mut self) {
        self.moving(|this| {
            this.pool.forget_cached();
            this.snapshots.forget_all();
            this.audit();
        });
    }

    /// What was computed is gone: running sequences begin anew with the tokens that they have, and nothing is found again.
    pub fn lose_state(&mut self) {
        self.moving(|this| {
            while let Some(&place) = this.running.last() {
                this.preempt(place);
            }
            this.pool.forget_cached();
            this.snapshots.forget_all();
            this.audit();
        });
    }

    pub fn has(&self, id: RequestId) -> bool {
        self.waiting.iter().chain(self.places.iter().flatten()).any(|s| s.id == id)
    }

    /// Spoils the books.
    #[cfg(test)]
    pub fn lose_a_block(&mut self) {
        self.pool.take();
    }

    #[cfg(test)]
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.places.iter().flatten()
    }

    #[cfg(test)]
    pub fn waiting(&self) -> impl Iterator<Item = &Sequence> {
        self.waiting.iter()
    }

    pub fn at(&self, place: u32) -> &Sequence {
        self.places[place as usize].as_ref().expect("the place is taken")
    }

    fn at_mut(&mut self, place: u32) -> &mut Sequence {
        self.places[place as usize].as_mut().expect("the place is taken")
    }

    fn free_place(&self) -> Option<u32> {
        self.places.iter().position(Option::is_none).map(|place| place as u32)
    }

    fn blocks_for(&self, tokens: usize) -> usize {
        if self.sizes.has_kv { tokens.div_ceil(BLOCK) } else { 0 }
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub fn books(&self) -> Books {
        self.pool.books()
    }

    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            waiting: self.waiting.len(),
            running: self.running.len(),
            books: self.books(),
            snapshots: self.snapshots.kept(),
            snapshots_total: self.snapshots.total(),
            ..self.counts
        }
    }
}
