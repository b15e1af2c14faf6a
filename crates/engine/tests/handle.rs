//! The engine on its own thread: what listeners hear, and that nothing stays behind of those who left.

mod common;

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{alone, config, greedy, transformer};
use exotherm_engine::handle::{EngineHandle, Listener, Refusal, Ticket, Update};
use exotherm_engine::{Engine, EngineError, FinishReason, Request, Sampling};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{
    Backend, BackendError, Batch, Executor, Limits, MemoryUse, Place, Program, SampleRow, Sampled,
};

const CTX: usize = 64;

fn handle(most_open: usize) -> EngineHandle {
    let engine = common::engine(&transformer(), CTX, 4, 8);
    EngineHandle::start(engine, most_open).expect("a thread")
}

/// A request and where its updates can be heard.
fn heard(request: Request) -> ((Request, Vec<Listener>), Receiver<Update>) {
    let (tell, updates) = channel();
    let listener: Listener = Box::new(move |update| tell.send(update).is_ok());
    ((request, vec![listener]), updates)
}

fn submit(handle: &EngineHandle, request: Request) -> (Ticket, Receiver<Update>) {
    let (submission, updates) = heard(request);
    let ticket = handle.submit(vec![submission]).expect("there is room").remove(0);
    (ticket, updates)
}

fn next(updates: &Receiver<Update>) -> Update {
    updates.recv_timeout(Duration::from_secs(20)).expect("an update comes")
}

/// The tokens of a request and how it ended.
fn to_the_end(updates: &Receiver<Update>) -> (Vec<u32>, FinishReason, Option<Arc<str>>) {
    assert!(matches!(next(updates), Update::Accepted));
    let mut tokens = Vec::new();
    loop {
        match next(updates) {
            Update::Token { token, index, logprobs } => {
                assert_eq!((index, logprobs), (tokens.len(), None));
                tokens.push(token);
            }
            Update::Finished { reason, stats, fault } => {
                assert_eq!(stats.generated, tokens.len());
                assert!(updates.recv().is_err(), "nothing comes after the end");
                return (tokens, reason, fault);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Waits until everything is free again.
fn settled(handle: &EngineHandle) {
    let begin = Instant::now();
    while handle.open() > 0 || handle.stats().scheduler.books.used > 0 {
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", handle.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn requests_from_many_threads_get_what_they_get_alone() {
    let handle = handle(64);
    std::thread::scope(|scope| {
        for i in 0..12u32 {
            let handle = handle.clone();
            scope.spawn(move || {
                let request = greedy(&[1 + i % 5, 3, 1 + i], 9);
                let (_ticket, updates) = submit(&handle, request.clone());
                let (tokens, reason, fault) = to_the_end(&updates);
                assert_eq!((tokens, reason), (alone(&transformer(), CTX, &request), FinishReason::Length));
                assert_eq!(fault, None);
            });
        }
    });
    settled(&handle);
    let stats = handle.stats();
    assert_eq!(
        (stats.outcomes.length, stats.generated_tokens, stats.scheduler.prompt_tokens),
        (12, 12 * 9, 12 * 3)
    );
    assert_eq!((stats.first_token.count(), stats.between_tokens.count()), (12, 12 * 8));
    handle.shut_down();
}

#[test]
fn choices_of_a_request_have_listeners_of_their_own() {
    let handle = handle(64);
    let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::default() };
    let request = Request { sampling: sampling.clone(), ..greedy(&[1, 2, 3], 8) };
    let (tells, heard): (Vec<_>, Vec<_>) = (0..3).map(|_| channel()).unzip();
    let listener = |tell: Sender<Update>| -> Listener { Box::new(move |update| tell.send(update).is_ok()) };
    let listeners = tells.into_iter().map(listener).collect();
    let tickets = handle.submit(vec![(request.clone(), listeners)]).expect("there is room");
    assert_eq!(tickets.len(), 3);
    for (i, updates) in heard.iter().enumerate() {
        let sampling = Sampling { seed: 5 + i as u64, ..sampling.clone() };
        let expected = alone(&transformer(), CTX, &Request { sampling, ..request.clone() });
        assert_eq!(to_the_end(updates).0, expected, "choice {i}");
    }
    settled(&handle);
    handle.shut_down();
}

#[test]
fn who_leaves_leaves_nothing_behind() {
    let handle = handle(64);
    let (ticket, updates) = submit(&handle, greedy(&[1, 2], 60));
    assert!(matches!(next(&updates), Update::Accepted));
    assert!(matches!(next(&updates), Update::Token { .. }));
    drop(ticket);
    let (_kept, deaf) = submit(&handle, greedy(&[3, 4], 60));
    drop(deaf);
    settled(&handle);
    assert_eq!(handle.stats().outcomes.cancelled, 2);
    handle.shut_down();
}

#[test]
fn refusals_come_at_once_and_take_all_or_none() {
    let handle = handle(3);
    let refused = |request: Request| handle.submit(vec![heard(request).0]).map(drop);
    let too_long = refused(greedy(&[1], CTX));
    assert!(matches!(too_long, Err(Refusal::Request(EngineError::TooLong { ctx: CTX, .. }))));
    let unknown = refused(greedy(&[common::VOCAB as u32], 1));
    assert!(matches!(unknown, Err(Refusal::Request(EngineError::Token { .. }))));
    let four = (0..4).map(|_| heard(greedy(&[1], 60)).0).collect();
    assert!(matches!(handle.submit(four), Err(Refusal::Full { open: 0, most: 3 })));
    assert_eq!(handle.open(), 0);
    let (_ticket, updates) = submit(&handle, greedy(&[1], 2));
    assert_eq!(to_the_end(&updates).1, FinishReason::Length);
    handle.shut_down();
}

#[test]
fn a_drained_engine_finishes_and_a_stopped_one_tells_so() {
    let first = handle(8);
    let (_ticket, updates) = submit(&first, greedy(&[1], 40));
    first.drain();
    assert!(matches!(first.submit(vec![heard(greedy(&[1], 1)).0]), Err(Refusal::Draining)));
    assert_eq!(to_the_end(&updates).1, FinishReason::Length);
    first.shut_down();
    let second = handle(8);
    let (_ticket, updates) = submit(&second, greedy(&[1], 60));
    second.cancel_all();
    let reason = to_the_end(&updates).1;
    assert!(matches!(reason, FinishReason::Cancelled | FinishReason::Length), "{reason:?}");
    second.shut_down();
    assert!(matches!(second.submit(vec![heard(greedy(&[1], 1)).0]), Err(Refusal::Draining)));
}

/// Panics in every step that has this token.
struct Panics(u32);

struct PanicsThere(Box<dyn Executor>, u32);

impl Backend for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }

    fn memory(&self, program: &Program, limits: &Limits) -> MemoryUse {
        ReferenceBackend.memory(program, limits)
    }

    fn compile(&self, program: &Program, limits: &Limits) -> Result<Box<dyn Executor>, BackendError> {
        Ok(Box::new(PanicsThere(ReferenceBackend.compile(program, limits)?, self.0)))
    }
}

impl Executor for PanicsThere {
    fn run_ops(&mut self, batch: &Batch, ops: Range<usize>) -> Result<(), BackendError> {
        self.0.run_ops(batch, ops)
    }

    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        assert!(!batch.tokens().contains(&self.1), "token {} is here", self.1);
        self.0.run(batch)
    }

    fn logits(&self) -> &[f32] {
        self.0.logits()
    }

    fn logits_of(&self, row: usize) -> Result<&[f32], BackendError> {
        self.0.logits_of(row)
    }

    fn sample(&mut self, rows: &[SampleRow], out: &mut Vec<Sampled>) -> Result<(), BackendError> {
        self.0.sample(rows, out)
    }

    fn memory(&self) -> MemoryUse {
        self.0.memory()
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.0.copy_block(from, to);
    }

    fn copy_slot(&mut self, from: u32, to: u32) {
        self.0.copy_slot(from, to);
    }

    fn read(&self, place: Place) -> Vec<f32> {
        self.0.read(place)
    }

    fn write(&mut self, place: Place, values: &[f32]) {
        self.0.write(place, values);
    }
}

#[test]
fn a_panic_fails_its_step_and_the_engine_goes_on() {
    let program = transformer();
    let fine = greedy(&[1, 2, 3], 6);
    let expected = alone(&program, CTX, &fine);
    let bad = (0..common::VOCAB as u32).find(|t| !expected.contains(t) && !fine.prompt.contains(t));
    let bad = bad.expect("a token that the fine request has not");
    let engine = Engine::new(&program, &Panics(bad), config(CTX, 4, 8)).expect("small");
    let handle = EngineHandle::start(engine, 8).expect("a thread");
    for _ in 0..2 {
        let (_ticket, updates) = submit(&handle, greedy(&[bad], 6));
        let (tokens, reason, fault) = to_the_end(&updates);
        assert_eq!((tokens, reason), (vec![], FinishReason::Failed));
        assert!(fault.is_some_and(|why| why.contains(&format!("token {bad} is here"))));
        let (_ticket, updates) = submit(&handle, fine.clone());
        assert_eq!(to_the_end(&updates), (expected.clone(), FinishReason::Length, None));
    }
    settled(&handle);
    assert_eq!(handle.stats().outcomes.failed, 2);
    handle.shut_down();
}

#[test]
fn a_handle_is_free_to_move() {
    fn assert_sendable<T: Clone + Send + Sync + 'static>(_: &T) {}
    let handle = handle(1);
    assert_sendable(&handle);
    let seen = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&seen);
    let listener: Listener = Box::new(move |_| {
        *counter.lock().expect("no panic") += 1;
        true
    });
    let tickets = handle.submit(vec![(greedy(&[1], 3), vec![listener])]).expect("there is room");
    settled(&handle);
    assert_eq!(*seen.lock().expect("no panic"), 5, "accepted, three tokens, finished");
    drop(tickets);
    handle.shut_down();
}
