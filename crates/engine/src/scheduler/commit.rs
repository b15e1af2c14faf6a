//! What came of a step.

use std::sync::Arc;
use std::time::Instant;

use exotherm_kernels::{BLOCK, SampleRow, Sampled};

use super::Scheduler;
use super::plan::{Fork, Plan, Sample, Save};
use crate::blocks::BlockPool;
use crate::error::EngineError;
use crate::request::{Event, FinishReason, TokenLogprobs};
use crate::sequence::Sequence;
use crate::snapshots::SnapshotPool;

impl Scheduler {
    /// What is to be chosen for each of the plan's samples.
    pub fn sample_rows<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = SampleRow<'a>> {
        let sample_row = |sample: &Sample| {
            // Another choice of the same prompt, about to begin, has the same tokens so far.
            let (sequence, position) = (self.at(sample.place), sample.position as usize);
            let given = sequence.tokens.get(position).copied();
            SampleRow {
                logits: sample.logits as usize,
                sampling: &sequence.sampling,
                prompt: sequence.prompt(),
                output: sequence.output(),
                position,
                logprobs: if given.is_some() { sequence.prompt_logprobs } else { sequence.logprobs },
                given,
            }
        };
        plan.samples().iter().map(sample_row)
    }

    /// Takes in a step that ran; `sampled` is what came of each of the plan's samples. A request whose logits were no
    /// numbers is over, and it alone.
    pub fn commit(&mut self, plan: Plan, sampled: &[Sampled], now: Instant, events: &mut Vec<Event>) {
        self.is_moving = true;
        assert_eq!(plan.samples.len(), sampled.len(), "a token for everyone who gets one");
        self.take_in_logs(&plan, sampled);
        self.take_in_state(&plan, sampled);
        for (sample, sampled) in plan.samples.iter().zip(sampled) {
            self.take_in_token(*sample, sampled, now, events);
        }
        self.spare = plan;
        self.audit();
        self.is_moving = false;
    }

    /// Notes how likely the tokens of prompts were, each up to the first of which nothing is known.
    fn take_in_logs(&mut self, plan: &Plan, sampled: &[Sampled]) {
        for (sample, sampled) in plan.samples.iter().zip(sampled) {
            let (sequence, position) = (self.at_mut(sample.place), sample.position as usize);
            let is_next = position < sequence.prompt_len && position == sequence.prompt_log.len() + 1;
            if let Some(logprobs) = TokenLogprobs::of(sampled).filter(|_| is_next) {
                Arc::make_mut(&mut sequence.prompt_log).push(logprobs);
            }
        }
    }

    /// Gives a sequence its token, unless that has stood there before.
    fn take_in_token(&mut self, sample: Sample, sampled: &Sampled, now: Instant, events: &mut Vec<Event>) {
        let (place, position) = (sample.place, sample.position as usize);
        // Its request may have failed over an earlier token of the same step.
        let Some(sequence) = &mut self.places[place as usize] else { return };
        let is_logged = sequence.is_logged_to(position);
        let Some(token) = sampled.token.filter(|_| is_logged) else {
            let position = if is_logged { position } else { sequence.prompt_log.len() + 1 };
            self.distrust(place);
            let fault = EngineError::NotNumbers { position }.to_string().into();
            return events.push(self.end(place, FinishReason::Failed, Some(fault), now));
        };
        if position < sequence.tokens.len() {
            return;
        }
        let (id, index) = (sequence.id, sequence.output().len());
        let finish = sequence.accept(token, now);
        let is_kept = sequence.output().len() > index;
        if matches!(finish, Some(FinishReason::Stop(_))) {
            sequence.stop_logprob = TokenLogprobs::of(sampled).map(|logprobs| logprobs.logprob);
        }
        if index == 0 {
            let log = Arc::clone(&sequence.prompt_log);
            if sequence.prompt_logprobs.is_some() {
                events.push(Event::Prompt { id, logprobs: Arc::clone(&log) });
            }
            self.free_followers(id, &log);
        }
        if is_kept {
            let logprobs = TokenLogprobs::of(sampled).map(Box::new);
            events.push(Event::Token { id, token, index, logprobs });
        }
        if let Some(reason) = finish {
            events.push(self.end(place, reason, None, now));
        }
    }

    /// Notes how far the step's sequences have come, and makes findable what they have left; not where no numbers came of
    /// it, because others would fail for it.
    fn take_in_state(&mut self, plan: &Plan, sampled: &[Sampled]) {
        let all_are_numbers = sampled.iter().all(|sampled| sampled.token.is_some());
        let is_sound = |place| {
            let mut of_all = plan.samples.iter().zip(sampled);
            all_are_numbers || !of_all.any(|(sample, s)| sample.place == place && s.token.is_none())
        };
        for row in &plan.rows {
            self.at_mut(row.place).computed = (row.start + row.len) as usize;
            if is_sound(row.place) {
                self.register(row.place);
            }
        }
        for save in &plan.saves {
            if is_sound(save.place) { self.keep(save) } else { self.snapshots.give_back(save.index) }
        }
        plan.forks.iter().for_each(|fork| self.fork(fork));
    }

    /// Lets nobody find what a sequence has that nobody else uses: what came of it is no number, and who knows since when.
    fn distrust(&mut self, place: u32) {
        let sequence = self.places[place as usize].as_mut().expect("a running sequence has its place");
        sequence.blocks.iter().for_each(|&block| self.pool.forget_own(block));
        if self.sizes.snapshots > 0 {
            (0..sequence.computed / BLOCK)
                .for_each(|i| self.snapshots.forget_state(&sequence.beginning(i, self.chain)));
        }
    }

    /// Makes the blocks that have become full findable.
    fn register(&mut self, place: u32) {
        if !self.sizes.has_kv {
            return;
        }
        let sequence = self.places[place as usize].as_mut().expect("a running sequence has its place");
        while sequence.prefix.is_open && sequence.prefix.registered < sequence.computed / BLOCK {
            let i = sequence.prefix.registered;
            let name = sequence.name(i, self.chain);
            let (block, before) = (sequence.blocks[i], sequence.prefix.id);
            match self.pool.register(block, name, before, sequence.block_tokens(i)) {
                Some((block, id)) => {
                    sequence.blocks[i] = block;
                    (sequence.prefix.registered, sequence.prefix.id) = (i + 1, id);
                }
                None => sequence.prefix.is_open = false,
            }
        }
    }

    /// Makes a snapshot that was taken findable.
    fn keep(&mut self, save: &Save) {
        let sequence = self.places[save.place as usize].as_mut().expect("a running sequence has its place");
        let seen = sequence.beginning(save.end / BLOCK - 1, self.chain);
        let kept = self.snapshots.register(save.index, seen, save.worth);
        if save.end == sequence.tokens.len() {
            sequence.tail = kept;
        }
        if kept.is_some() && sequence.common == Some(save.end) {
            // Two prompts have gone through here.
            self.snapshots.begin_at(save.index);
        }
    }

    /// Lets a sequence go on where another one is; what they both have they share.
    fn fork(&mut self, fork: &Fork) {
        let leader = self.at(fork.from);
        let (computed, blocks, prefix) = (leader.computed, leader.blocks.clone(), leader.prefix.clone());
        let log = Arc::clone(&leader.prompt_log);
        blocks.iter().for_each(|&block| self.pool.hold(block));
        let follower = self.at_mut(fork.to);
        (follower.computed, follower.blocks, follower.prefix) = (computed, blocks, prefix);
        follower.prompt_log = log;
        self.start(fork.to);
    }

    /// Ends the requests of a step that failed because of `fault`: their state is not to be trusted. If things were being
    /// moved when it failed, nothing is where it should be: then all requests end and everything is forgotten.
    pub fn abandon(&mut self, plan: Option<Plan>, fault: &Arc<str>, now: Instant, events: &mut Vec<Event>) {
        if std::mem::replace(&mut self.is_moving, true) {
            return self.reset(fault, now, events);
        }
        if let Some(plan) = plan {
            plan.saves.iter().for_each(|save| self.snapshots.give_back(save.index));
            let places = plan.rows.iter().map(|row| row.place).chain(plan.forks.iter().map(|fork| fork.to));
            for place in places {
                events.push(self.end(place, FinishReason::Failed, Some(fault.clone()), now));
            }
            self.spare = plan;
        }
        self.audit();
        self.is_moving = false;
    }

    fn reset(&mut self, fault: &Arc<str>, now: Instant, events: &mut Vec<Event>) {
        let all = self.places.iter_mut().filter_map(Option::take).chain(self.waiting.drain(..));
        let failed = |s: &Sequence| {
            let (id, reason, fault) = (s.id, FinishReason::Failed, Some(fault.clone()));
            Event::Finished { id, reason, stats: s.stats(now), fault }
        };
        events.extend(all.map(|sequence| failed(&sequence)));
        self.running.clear();
        self.spare = Plan::default();
        self.pool = BlockPool::new(self.sizes.blocks);
        self.snapshots = SnapshotPool::new(self.places.len(), self.sizes.snapshots);
        self.audit();
        self.is_moving = false;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::config::EngineConfig;
    use crate::engine::Engine;
    use crate::request::Request;
    use crate::simulator::model::{Fake, Fault, State, program};

    /// Runs a request to its end; what it said and how that ended.
    fn run(engine: &mut Engine, prompt: Vec<u32>) -> (Vec<u32>, FinishReason) {
        engine.submit(Request::new(prompt, 9)).unwrap();
        let mut said = Vec::new();
        loop {
            for event in engine.step().unwrap() {
                match *event {
                    Event::Token { token, .. } => said.push(token),
                    Event::Finished { reason, .. } => return (said, reason),
                    Event::Prompt { .. } => panic!("it was not asked for"),
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_not_found_by_others() {
        for state in [State::Kv, State::Recurrent, State::Both] {
            let fault = Fault::default();
            let backend = Fake { fault: fault.clone(), ..Fake::default() };
            let config = EngineConfig { max_seqs: 2, ..EngineConfig::new(96) };
            let mut engine = Engine::new(&program(state), &backend, config).unwrap();
            let prompt: Vec<u32> = (0..3 * BLOCK as u32).map(|i| i * i % 7).collect();
            let longer: Vec<u32> = prompt.iter().copied().chain([1, 2]).collect();
            fault.set(Fault::NOT_NUMBERS);
            assert_eq!(run(&mut engine, prompt.clone()), (Vec::new(), FinishReason::Failed));
            let after = run(&mut engine, longer.clone());
            engine.forget_prefixes();
            assert_eq!(after, run(&mut engine, longer), "{state:?}");
        }
    }

    #[test]
    fn what_came_before_that_which_is_no_number_is_forgotten() {
        for state in [State::Kv, State::Recurrent, State::Both] {
            let (program, now) = (program(state), Instant::now());
            let config = EngineConfig { chunk: BLOCK, snapshot_stride: BLOCK, ..EngineConfig::new(96) };
            let limits = config.limits(&program, &Fake::default()).unwrap();
            let mut scheduler = Scheduler::new(&program, &config, &limits);
            scheduler.submit(&[Request::new(vec![1; 3 * BLOCK + 5], 9)], now).unwrap();
            let mut events = Vec::new();
            for _ in 0..3 {
                let plan = scheduler.plan(now).unwrap();
                scheduler.commit(plan, &[], now, &mut events);
            }
            assert!(scheduler.snapshots.kept() == 3 || state == State::Kv);
            let plan = scheduler.plan(now).unwrap();
            scheduler.commit(plan, &[Sampled { token: None, logprobs: None }], now, &mut events);
            assert!(matches!(events[..], [Event::Finished { reason: FinishReason::Failed, .. }]));
            assert_eq!((scheduler.books().cached, scheduler.stats().snapshots), (0, 0), "{state:?}");
        }
    }

    /// Whoever panicked in the scheduler itself, everybody is told that it is over, and things are as at first.
    #[test]
    fn what_broke_off_in_the_middle_is_begun_anew() {
        let (program, now) = (program(State::Both), Instant::now());
        let config = EngineConfig { max_seqs: 3, ..EngineConfig::new(64) };
        let limits = config.limits(&program, &Fake::default()).unwrap();
        let mut scheduler = Scheduler::new(&program, &config, &limits);
        let request = Request { n: 5, ..Request::new(vec![1; 16], 5) };
        let first = scheduler.submit(std::slice::from_ref(&request), now).unwrap()[0];
        let mut events = Vec::new();
        let plan = scheduler.plan(now).unwrap();
        let sampled = [2, 3, 4].map(|token| Sampled { token: Some(token), logprobs: None });
        scheduler.commit(plan, &sampled, now, &mut events);
        let plan = scheduler.plan(now);
        assert_eq!((scheduler.stats().running, scheduler.stats().waiting), (3, 2));

        events.clear();
        scheduler.is_moving = true;
        scheduler.abandon(plan, &"a test".into(), now, &mut events);
        let ended = events.iter().map(|event| match event {
            Event::Finished { id, reason: FinishReason::Failed, .. } => *id,
            other => panic!("{other:?}"),
        });
        assert_eq!(ended.collect::<HashSet<_>>(), (0..5).map(|i| first.choice(i)).collect());
        assert!(scheduler.is_idle());
        assert_eq!((scheduler.books().free, scheduler.stats().snapshots), (limits.blocks, 0));
        scheduler.submit(&[request], now).unwrap();
        assert!(scheduler.plan(now).is_some());
    }
}
