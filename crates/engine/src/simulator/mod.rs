//! The scheduler against a model without kernels: random arrivals, lengths, priorities, choices, cancellations, deadlines
//! and failures of all that a backend does, with pools of all sizes, some much too small. Everything follows from a seed,
//! the time too: every step takes a millisecond.

pub(crate) mod model;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use exotherm_kernels::{BLOCK, SampleRow};

use crate::config::EngineConfig;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::request::{Event, FinishReason, Request, RequestId, TokenLogprobs};
use crate::sampling::{Sampling, reference};
use crate::scheduler::SchedulerStats;
use crate::sequence::{Rank, Sequence};
use model::{Fake, Fault, Omission, Seen, State, VOCAB, program};

/// A splitmix64 stream.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What a request must be told, worked out from its tokens alone.
struct Expected {
    seen: Seen,
    tokens: Vec<u32>,
    prompt_len: usize,
    request: Request,
    /// Whether it has been told how likely its prompt is.
    is_prompt_told: bool,
    /// The steps that had been begun when it came.
    submitted: u64,
    /// The step of its latest token, and how often it had been preempted by then.
    last_token: Option<(u64, usize)>,
}

impl Expected {
    fn new(mut request: Request, choice: usize, submitted: u64) -> Expected {
        request.sampling.seed = request.sampling.seed.wrapping_add(choice as u64);
        let seen = request.prompt.iter().fold(Seen::default(), |seen, &token| seen.and(token));
        let (tokens, prompt_len) = (request.prompt.clone(), request.prompt.len());
        let (is_prompt_told, last_token) = (false, None);
        Expected { seen, tokens, prompt_len, request, is_prompt_told, submitted, last_token }
    }

    /// How likely each token of the prompt after the first is.
    fn prompt(&self) -> Vec<TokenLogprobs> {
        let (prompt, sampling) = (&self.request.prompt, &self.request.sampling);
        let mut seen = Seen::default();
        let told = prompt.iter().zip(&prompt[1..]).zip(1..).map(|((&token, &given), position)| {
            seen = seen.and(token);
            let (logprobs, given) = (self.request.prompt_logprobs, Some(given));
            let row = SampleRow { logits: 0, sampling, prompt, output: &[], position, logprobs, given };
            TokenLogprobs::of(&reference::sample(&seen.logits(), &row)).expect("it was asked for")
        });
        told.collect()
    }

    fn next(&self) -> u32 {
        let (prompt, output) = self.tokens.split_at(self.prompt_len);
        let (sampling, position) = (&self.request.sampling, self.tokens.len());
        let row = SampleRow { logits: 0, sampling, prompt, output, position, logprobs: None, given: None };
        reference::sample(&self.seen.logits(), &row).token.expect("they are numbers")
    }

    fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }
}

/// What happened in a simulation, to see that it was worth it.
#[derive(Default, Debug)]
struct Seldom {
    steps: u64,
    ended: HashMap<&'static str, usize>,
    preemptions: u64,
    cached_tokens: u64,
    forks: u64,
    /// Blocks that were shared and had to be copied.
    block_copies: usize,
    /// Runs in which sequences made room, choices began where another was, shared blocks were copied and steps failed.
    all_at_once: u64,
    refused: usize,
    /// Prompts of which it was told how likely they were, and those of them that made room on the way or later.
    prompts_told: usize,
    prompts_made_room: usize,
    /// By the kind of fault.
    failed: [usize; Fault::KINDS],
    /// Requests whose deadline passed while they were answered.
    late_answers: usize,
}

/// A clock that stands still in a step.
#[derive(Clone)]
struct Clock {
    begin: Instant,
    millis: Arc<AtomicU64>,
}

impl Clock {
    fn after(&self, millis: usize) -> Instant {
        self.begin + Duration::from_millis(self.millis.load(Ordering::Relaxed) + millis as u64)
    }
}

struct Simulation {
    engine: Engine,
    clock: Clock,
    fault: Fault,
    numbers: Numbers,
    ctx: usize,
    /// Whether answers are long and the pool has hardly room for one.
    is_tight: bool,
    block_copies: Arc<AtomicUsize>,
    live: HashMap<RequestId, Expected>,
    /// Beginnings that prompts have in common.
    topics: Vec<Vec<u32>>,
    seldom: Seldom,
}

impl Simulation {
    fn new(seed: u64, omits: Omission) -> Simulation {
        let mut numbers = Numbers(seed);
        let is_tight = numbers.one_in(4);
        let state = match is_tight {
            true => [State::Kv, State::Both][numbers.below(2)],
            false => [State::Kv, State::Recurrent, State::Both][numbers.below(3)],
        };
        let ctx = if is_tight { 120 + numbers.below(200) } else { 40 + numbers.below(60) };
        let max_seqs = usize::from(is_tight) + 1 + numbers.below(6);
        let least = ctx.div_ceil(BLOCK);
        let blocks = match numbers.below(4) {
            _ if is_tight => Some(least + numbers.below(least / 5 + 1)),
            0 => None,
            // Less than one context: some requests never fit.
            1 => Some(least - numbers.below(2)),
            _ => Some(least + numbers.below(least * max_seqs)),
        };
        let config = EngineConfig {
            max_seqs,
            blocks,
            queue: numbers.below(12),
            chunk: 1 + numbers.below(40),
            logit_rows: 1 + numbers.below(12),
            snapshots: numbers.below(8),
            // With the last a prompt's last stride is divided.
            snapshot_stride: BLOCK * [0, 1, 2, 8][numbers.below(4)],
            ..EngineConfig::new(ctx)
        };
        let fault = Fault::default();
        let block_copies = Arc::<AtomicUsize>::default();
        let backend = Fake { fault: fault.clone(), block_copies: block_copies.clone(), omits };
        let mut engine = Engine::new(&program(state), &backend, config).expect("it is small");
        if numbers.one_in(4) {
            // Five names for all beginnings.
            engine.scheduler.set_chain(|before, tokens| (before + u64::from(tokens[0])) % 5);
        }
        let clock = Clock { begin: Instant::now(), millis: Arc::default() };
        let engines = clock.clone();
        engine.set_clock(Box::new(move || engines.after(0)));
        let topics = (0..4).map(|_| (0..ctx).map(|_| numbers.below(VOCAB) as u32).collect()).collect();
        let (live, seldom) = (HashMap::new(), Seldom::default());
        Simulation { engine, clock, fault, numbers, ctx, is_tight, block_copies, live, topics, seldom }
    }

    fn request(&mut self) -> Request {
        let numbers = &mut self.numbers;
        let topic = &self.topics[numbers.below(self.topics.len())];
        let mut prompt = topic[..numbers.below(self.ctx * 3 / if self.is_tight { 12 } else { 4 })].to_vec();
        prompt.extend((0..=numbers.below(5)).map(|_| numbers.below(VOCAB) as u32));
        let most = self.ctx.saturating_sub(prompt.len()).max(1);
        let max_tokens = if self.is_tight { most } else { 1 + numbers.below(most) };
        let mut request = Request::new(prompt, max_tokens);
        // At the most they are worth more steps than a simulation has.
        let levels = [2, 2, 10, 100][numbers.below(4)];
        request.priority = numbers.below(2 * levels + 1) as i32 - levels as i32;
        request.sampling.seed = numbers.next();
        if numbers.one_in(3) {
            request.sampling = Sampling { temperature: 1.0, ..request.sampling };
        }
        if numbers.one_in(4) {
            request.n = 1 + numbers.below(5);
        }
        if numbers.one_in(4) {
            request.prompt_logprobs = Some(numbers.below(4) as u8);
        }
        if numbers.one_in(16) {
            request.max_tokens = 0;
        }
        if numbers.one_in(8) {
            request.stop_tokens.push(numbers.below(VOCAB) as u32);
        }
        if numbers.one_in(10) {
            request.deadline = Some(self.clock.after(numbers.below(3 * self.ctx)));
        }
        request
    }

    fn submit(&mut self) {
        let request = self.request();
        let steps = self.engine.stats().steps;
        match self.engine.submit(request.clone()) {
            Ok(id) => {
                for i in 0..request.n {
                    let before = self.live.insert(id.choice(i), Expected::new(request.clone(), i, steps));
                    assert!(before.is_none(), "a name is given twice");
                }
            }
            Err(
                EngineError::QueueFull { .. }
                | EngineError::Choices { .. }
                | EngineError::TooManyBlocks { .. }
                | EngineError::TooLong { .. },
            ) => self.seldom.refused += 1,
            Err(error) => panic!("{error}"),
        }
    }

    fn any_live(&mut self) -> Option<RequestId> {
        let mut ids: Vec<_> = self.live.keys().copied().collect();
        ids.sort();
        (!ids.is_empty()).then(|| ids[self.numbers.below(ids.len())])
    }

    /// A step, and all that must hold after it.
    fn step(&mut self) {
        // In most steps there is nothing to copy.
        let fault = match self.numbers.below(1000) {
            0..3 => 1 + self.numbers.below(Fault::KINDS - 1),
            3..10 => Fault::COPY_PANIC,
            _ => 0,
        };
        self.fault.set(fault);
        self.clock.millis.fetch_add(1, Ordering::Relaxed);
        let before = self.engine.stats();
        let ran: Vec<_> = self.engine.scheduler.sequences().map(|s| (s.rank, s.computed)).collect();
        let stepped = catch_unwind(AssertUnwindSafe(|| match self.engine.step() {
            Ok(events) => Ok(events.to_vec()),
            Err(error) => Err(error),
        }));
        self.seldom.steps += 1;
        match stepped {
            Ok(Ok(events)) => {
                events.iter().for_each(|event| self.hear(event));
                let blames_numbers = |e: &Event| e.fault().is_some_and(|why| why.contains("not numbers"));
                let is_blamed = events.iter().any(blames_numbers);
                assert!(!is_blamed || fault == Fault::NOT_NUMBERS, "all of them are numbers");
                let is_late = |e: &Expected| e.request.deadline.is_some_and(|at| at <= self.clock.after(0));
                assert!(!self.live.values().any(is_late), "a deadline has passed and the request goes on");
            }
            Ok(Err(EngineError::Backend(_))) => self.seldom.failed[fault] += 1,
            Ok(Err(error)) => panic!("{error}"),
            Err(payload) => {
                if payload.downcast_ref::<&str>() != Some(&"a test") {
                    std::panic::resume_unwind(payload);
                }
                self.seldom.failed[fault] += 1;
                self.engine.fail_step("a test");
            }
        }
        self.check_progress(&before, &ran);
        if self.seldom.steps.is_multiple_of(16) {
            self.check_sharing();
            self.engine.audit().expect("all is where it should be");
        }
        assert!(self.engine.books().balance(), "{:?}", self.engine.books());
    }

    /// A block that is in two tables is in the same place of both and holds what both have said up to there.
    fn check_sharing(&self) {
        let mut known: HashMap<u32, (usize, &Sequence)> = HashMap::new();
        for sequence in self.engine.scheduler.sequences() {
            for (i, &block) in sequence.blocks.iter().enumerate() {
                let &mut (at, other) = known.entry(block).or_insert((i, sequence));
                assert_eq!(at, i, "{} and {} share block {block}", sequence.id, other.id);
                let end = ((i + 1) * BLOCK).min(sequence.computed).min(other.computed);
                assert_eq!(
                    sequence.tokens[..end],
                    other.tokens[..end],
                    "block {block} is of another's tokens"
                );
            }
        }
    }

    fn hear(&mut self, event: &Event) {
        let steps = self.engine.stats().steps;
        match *event {
            Event::Prompt { id, ref logprobs } => {
                let expected = self.live.get_mut(&id).expect("nothing comes after the end");
                assert!(!std::mem::replace(&mut expected.is_prompt_told, true), "{id}: told twice");
                assert_eq!(expected.generated(), 0, "the prompt comes first");
                assert_eq!(**logprobs, expected.prompt(), "{id}: not as alone");
                self.seldom.prompts_told += 1;
            }
            Event::Token { id, token, index, .. } => {
                let expected = self.live.get_mut(&id).expect("nothing comes after the end");
                assert_eq!(expected.is_prompt_told, expected.request.prompt_logprobs.is_some());
                assert_eq!(index, expected.generated(), "tokens come in order");
                assert_eq!(token, expected.next(), "{id}, token {index}: not as alone");
                expected.tokens.push(token);
                expected.seen = expected.seen.and(token);
                let here = self.engine.scheduler.sequences().find(|s| s.id == id);
                expected.last_token = here.map(|s| (steps, s.preemptions));
            }
            Event::Finished { id, reason, stats, ref fault } => {
                let expected = self.live.remove(&id).expect("a request ends once");
                assert_eq!(stats.generated, expected.generated());
                assert!(stats.cached_tokens <= stats.prompt_tokens);
                assert_eq!(fault.is_some(), reason == FinishReason::Failed, "who fails is told why");
                let is_asked = expected.request.prompt_logprobs.is_some();
                let is_whole = matches!(reason, FinishReason::Stop(_) | FinishReason::Length);
                assert!(!is_whole || expected.is_prompt_told == is_asked, "{id}: the prompt is told");
                self.seldom.prompts_made_room += usize::from(is_whole && is_asked && stats.preemptions > 0);
                let name = match reason {
                    FinishReason::Stop(token) => {
                        assert_eq!(token, expected.next());
                        assert!(expected.request.stop_tokens.contains(&token));
                        "stop"
                    }
                    FinishReason::Length => {
                        assert_eq!(expected.generated(), expected.request.max_tokens);
                        "length"
                    }
                    FinishReason::Deadline => {
                        assert!(expected.request.deadline.is_some());
                        self.seldom.late_answers += usize::from(stats.generated > 0);
                        "deadline"
                    }
                    FinishReason::Cancelled => "cancelled",
                    FinishReason::Failed => {
                        let is_own = fault.as_ref().is_some_and(|why| why.contains("not numbers"));
                        self.seldom.failed[Fault::NOT_NUMBERS] += usize::from(is_own);
                        "failed"
                    }
                };
                *self.seldom.ended.entry(name).or_default() += 1;
            }
        }
    }

    /// Nobody waits for ever: the first of those that run has got on, those that were let in come before those that still
    /// wait, and who has begun to answer says something in every step unless it had to make room.
    fn check_progress(&self, before: &SchedulerStats, ran: &[(Rank, usize)]) {
        let (now, scheduler) = (self.engine.stats(), &self.engine.scheduler);
        if let Some(&(rank, computed)) = ran.iter().min()
            && let Some(sequence) = scheduler.sequences().find(|s| s.rank == rank)
        {
            assert!(sequence.computed > computed, "the first of all has not got on");
        }
        let is_new = |s: &&Sequence| ran.iter().all(|(rank, _)| *rank != s.rank);
        let let_in = scheduler.sequences().filter(is_new).map(|s| s.rank).max();
        let passed = scheduler.waiting().filter(|s| s.leader.is_none()).map(|s| s.rank).min();
        // Who comes so many steps later must be worth so many more: so nobody waits for ever.
        for new in scheduler.sequences().filter(is_new).filter(|s| !s.is_fork) {
            for old in scheduler.waiting().filter(|s| s.leader.is_none()) {
                let (new, old) = (&self.live[&new.id], &self.live[&old.id]);
                let levels = i64::from(new.request.priority) - i64::from(old.request.priority);
                let later = new.submitted as i64 - old.submitted as i64;
                assert!(later <= 64 * levels, "{later} steps later and {levels} levels higher");
            }
        }
        if let (Some(let_in), Some(passed)) = (let_in, passed) {
            assert_eq!(now.preemptions, before.preemptions, "who made room is let in at once");
            assert!(let_in < passed, "{let_in:?} was let in before {passed:?}");
        }
        for sequence in scheduler.sequences() {
            let expected = &self.live[&sequence.id];
            if let Some((step, preemptions)) = expected.last_token
                && preemptions == sequence.preemptions
            {
                assert_eq!(step, now.steps, "{} decodes and was left out", sequence.id);
            }
        }
    }

    fn run(mut self, steps: usize) -> Seldom {
        // Some are flooded, some are mostly idle.
        let rate = 1 + self.numbers.below(if self.is_tight { 8 } else { 30 });
        for _ in 0..steps {
            if self.numbers.one_in(rate) {
                self.submit();
            }
            if self.numbers.one_in(100)
                && let Some(id) = self.any_live()
            {
                self.engine.cancel(id);
                self.engine.cancel(id);
            }
            if self.numbers.one_in(2000) {
                self.engine.forget_prefixes();
            }
            self.step();
        }
        // All that is left ends, one after another at worst.
        let most = (self.live.len() + 1) * self.ctx * 2;
        for _ in 0..most {
            if self.engine.is_idle() {
                break;
            }
            self.step();
        }
        assert!(self.live.is_empty(), "{:?} never ended", self.live.keys());
        let stats = self.engine.stats();
        assert_eq!((stats.books.used, stats.running, stats.waiting), (0, 0, 0));
        assert_eq!(self.engine.audit(), Ok(()));
        (self.seldom.preemptions, self.seldom.cached_tokens) = (stats.preemptions, stats.cached_tokens);
        self.seldom.forks = stats.forks;
        self.seldom.block_copies = self.block_copies.load(Ordering::Relaxed);
        let had_all = stats.preemptions > 0 && stats.forks > 0 && self.seldom.block_copies > 0;
        self.seldom.all_at_once = u64::from(had_all && self.seldom.failed.iter().sum::<usize>() > 0);
        self.seldom
    }
}

/// Simulations in a usual run of the tests, of about a thousand steps each; `EXOTHERM_SIMULATIONS` asks for more.
const SIMULATIONS: u64 = 300;

#[test]
fn whatever_comes_in_whatever_order() {
    let asked = std::env::var("EXOTHERM_SIMULATIONS").ok().map(|n| n.parse().expect("a number"));
    let simulations = asked.unwrap_or(SIMULATIONS);
    let mut all = Seldom::default();
    for seed in 0..simulations {
        let seldom = match catch_unwind(|| Simulation::new(seed, Omission::Nothing).run(1000)) {
            Ok(seldom) => seldom,
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic)
            }
        };
        all.steps += seldom.steps;
        all.preemptions += seldom.preemptions;
        all.cached_tokens += seldom.cached_tokens;
        all.forks += seldom.forks;
        all.block_copies += seldom.block_copies;
        all.all_at_once += seldom.all_at_once;
        all.refused += seldom.refused;
        all.prompts_told += seldom.prompts_told;
        all.prompts_made_room += seldom.prompts_made_room;
        all.late_answers += seldom.late_answers;
        all.failed.iter_mut().zip(seldom.failed).for_each(|(sum, n)| *sum += n);
        seldom.ended.iter().for_each(|(name, n)| *all.ended.entry(name).or_default() += n);
    }
    println!("{all:?}");
    assert!(all.steps >= 1000 * simulations);
    assert!(all.preemptions > 4 * simulations && all.cached_tokens > 100 * simulations, "{all:?}");
    assert!(all.all_at_once > simulations / 5, "{all:?}");
    assert!(
        all.forks > simulations && all.block_copies as u64 > simulations && all.late_answers > 100,
        "{all:?}"
    );
    assert!(all.prompts_told > 1000 && all.prompts_made_room > 50, "{all:?}");
    assert!(all.failed[1..].iter().all(|&n| n > 50), "{all:?}");
    for end in ["stop", "length", "deadline", "cancelled", "failed"] {
        assert!(all.ended.get(end).is_some_and(|&n| n > 100), "{end}: {all:?}");
    }
}

#[test]
fn what_is_left_out_is_noticed() {
    for omits in [Omission::BlockCopies, Omission::SlotCopies, Omission::LastPositions] {
        let noticed = (0..100).any(|seed| catch_unwind(|| Simulation::new(seed, omits).run(200)).is_err());
        assert!(noticed, "{omits:?}");
    }
    (0..10).for_each(|seed| drop(Simulation::new(seed, Omission::Nothing).run(200)));
}
