//! The engine on its own thread: what listeners hear, and that nothing stays behind of those who left.

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{alone, config, greedy, transformer, transformer_without};
use exotherm_engine::handle::{EngineHandle, Listener, Refusal, Ticket, Update};
use exotherm_engine::{Embedding, Engine, EngineConfig, EngineError, FinishReason, Request, Sampling};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{BackendError, Batch, Executor, Wrapped, Wrapper};

const CTX: usize = 64;

fn handle(most_open: usize) -> EngineHandle {
    let engine = common::engine(&transformer(), CTX, 4, 8);
    EngineHandle::start(engine, most_open).expect("a thread")
}

fn listening(tell: Sender<Update>) -> Listener {
    Box::new(move |update| tell.send(update).is_ok())
}

/// A request and where its updates can be heard.
fn heard(request: Request) -> ((Request, Vec<Listener>), Receiver<Update>) {
    let (tell, updates) = channel();
    ((request, vec![listening(tell)]), updates)
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
    let listeners = tells.into_iter().map(listening).collect();
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
    assert!(matches!(
        too_long,
        Err(Refusal::Request { index: 0, error: EngineError::TooLong { ctx: CTX, .. } })
    ));
    let unknown = refused(greedy(&[common::VOCAB as u32], 1));
    assert!(matches!(unknown, Err(Refusal::Request { index: 0, error: EngineError::Token { .. } })));
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
    // Its first step is not over before it is told to stop.
    let (goes_on, gate) = channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let backend = Wrapped::new(Box::new(ReferenceBackend), move |inner, _| Waits(inner, Arc::clone(&gate)));
    let engine = Engine::new(&transformer(), &backend, config(CTX, 4, 8)).expect("small");
    let second = EngineHandle::start(engine, 8).expect("a thread");
    let (_ticket, updates) = submit(&second, greedy(&[1], 60));
    second.cancel_all();
    drop(goes_on);
    let (tokens, reason, fault) = to_the_end(&updates);
    assert_eq!((reason, fault), (FinishReason::Cancelled, None));
    assert!(tokens.len() <= 1, "{tokens:?}");
    second.shut_down();
    assert!(matches!(second.submit(vec![heard(greedy(&[1], 1)).0]), Err(Refusal::Draining)));
}

/// Every step waits for something to come through a channel, or for its end.
struct Waits(Box<dyn Executor>, Arc<Mutex<Receiver<()>>>);

impl Wrapper for Waits {
    fn inner(&self) -> &dyn Executor {
        self.0.as_ref()
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        self.0.as_mut()
    }

    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        // That it has ended is as good.
        let _ = self.1.lock().expect("nobody panics while it is held").recv();
        self.0.run(batch)
    }
}

/// Panics in every step that has this token.
struct Panics(Box<dyn Executor>, u32);

impl Wrapper for Panics {
    fn inner(&self) -> &dyn Executor {
        self.0.as_ref()
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        self.0.as_mut()
    }

    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        assert!(!batch.tokens().contains(&self.1), "token {} is here", self.1);
        self.0.run(batch)
    }
}

#[test]
fn a_panic_fails_its_step_and_the_engine_goes_on() {
    let program = transformer();
    let fine = greedy(&[1, 2, 3], 6);
    let expected = alone(&program, CTX, &fine);
    let bad = (0..common::VOCAB as u32).find(|t| !expected.contains(t) && !fine.prompt.contains(t));
    let bad = bad.expect("a token that the fine request has not");
    let backend = Wrapped::new(Box::new(ReferenceBackend), move |inner, _| Panics(inner, bad));
    let engine = Engine::new(&program, &backend, config(CTX, 4, 8)).expect("small");
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
fn a_listener_that_panics_loses_its_own_request_and_no_other() {
    let handle = handle(8);
    let request = |token| greedy(&[token, 2, 3], 20);
    let heard_there = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&heard_there);
    let listener: Listener = Box::new(move |_| {
        *counter.lock().expect("nobody panics while it is held") += 1;
        let heard = *counter.lock().expect("nobody panics while it is held");
        // Unlike `panic!` this prints nothing.
        if heard == 3 { std::panic::resume_unwind(Box::new("a test")) } else { true }
    });
    let (_kept, other) = submit(&handle, request(1));
    let _panics = handle.submit(vec![(request(4), vec![listener])]).expect("there is room");
    let expected = (alone(&transformer(), CTX, &request(1)), FinishReason::Length, None);
    assert_eq!(to_the_end(&other), expected);
    settled(&handle);
    assert_eq!(*heard_there.lock().expect("no panic"), 3, "it is not called again");
    let outcomes = handle.stats().outcomes;
    assert_eq!((outcomes.length, outcomes.cancelled, outcomes.failed), (1, 1, 0));
    assert!(handle.is_alive());
    handle.shut_down();
    assert!(!handle.is_alive());
}

#[test]
fn a_fault_is_told_to_whom_it_happened() {
    let program = transformer_without(5);
    let sampling = Sampling { logit_bias: vec![(5, -100.0)], ..Sampling::default() };
    let request = |prompt: &[u32]| Request { sampling: sampling.clone(), ..greedy(prompt, 4) };
    let engine = common::engine(&program, CTX, 4, 8);
    let handle = EngineHandle::start(engine, 8).expect("a thread");
    let (both, updates): (Vec<_>, Vec<_>) =
        [[3, 5], [1, 2]].map(|prompt| heard(request(&prompt))).into_iter().unzip();
    let _tickets = handle.submit(both).expect("there is room");
    let (tokens, reason, fault) = to_the_end(&updates[0]);
    assert_eq!((tokens, reason), (vec![], FinishReason::Failed));
    assert!(fault.is_some_and(|why| why.contains("position 2 are not numbers")));
    assert_eq!(
        to_the_end(&updates[1]),
        (alone(&program, CTX, &request(&[1, 2])), FinishReason::Length, None)
    );
    handle.shut_down();
}

#[test]
fn requests_are_taken_all_or_none_whatever_is_wrong_with_one() {
    let config = EngineConfig { blocks: Some(2), queue: 3, ..config(CTX, 1, 8) };
    let engine = Engine::new(&transformer(), &ReferenceBackend, config).expect("small");
    // It would let more in than the engine has room for.
    let handle = EngineHandle::start(engine, 100).expect("a thread");
    let fine = || heard(greedy(&[1], 2));
    for (bad, why) in [
        (greedy(&[1; 40], 2), "need 3 blocks"),
        (Request { priority: 101, ..greedy(&[1], 2) }, "priority is 101"),
    ] {
        let (submission, _updates) = fine();
        let refused = handle.submit(vec![submission, heard(bad).0]).map(drop).expect_err("one is wrong");
        assert!(refused.to_string().contains(why), "{refused}");
    }
    let choices = |n: usize| (0..n).map(|_| channel()).map(|(tell, heard)| (listening(tell), heard)).unzip();
    let (listeners, _updates): (Vec<_>, Vec<_>) = choices(5);
    let refused = handle.submit(vec![(greedy(&[1], 2), listeners)]).map(drop).expect_err("four are the most");
    assert!(refused.to_string().contains("between 1 and 4"), "{refused}");
    assert_eq!(handle.open(), 0);

    // One and four choices: either alone would fit.
    let (listeners, updates): (Vec<_>, Vec<_>) = choices(4);
    let (first, first_updates) = fine();
    let _tickets = handle.submit(vec![first, (greedy(&[1], 2), listeners)]).expect("the engine refuses it");
    for updates in updates.iter().chain([&first_updates]) {
        assert!(
            matches!(next(updates), Update::Refused(why) if matches!(*why, EngineError::QueueFull { .. }))
        );
        assert!(updates.recv().is_err(), "nothing comes after the end");
    }
    settled(&handle);
    assert_eq!((handle.stats().outcomes.refused, handle.stats().scheduler.prompt_tokens), (5, 0));
    handle.shut_down();
}

#[test]
fn embeddings_and_choices_are_counted_apart() {
    let handle = handle(16);
    let made: Arc<Embedding> = Arc::default();
    let (_kept, updates) = submit(&handle, Request { embedding: Some(made.clone()), ..greedy(&[1; 10], 0) });
    assert_eq!(to_the_end(&updates).1, FinishReason::Length);
    assert!(made.values().is_some());
    let (listeners, updates): (Vec<_>, Vec<_>) =
        (0..3).map(|_| channel()).map(|(tell, heard)| (listening(tell), heard)).unzip();
    let _tickets = handle.submit(vec![(greedy(&[2; 20], 5), listeners)]).expect("there is room");
    updates.iter().for_each(|updates| assert_eq!(to_the_end(updates).0.len(), 5));
    settled(&handle);
    let stats = handle.stats();
    assert_eq!((stats.outcomes.length, stats.embeddings.length), (4, 1));
    assert_eq!((stats.generated_tokens, stats.first_token.count()), (15, 3));
    let s = stats.scheduler;
    assert_eq!((s.prompt_tokens, s.embedded_tokens, s.cached_tokens), (30, 10, 0));
    assert_eq!((s.forks, s.forked_tokens), (2, 40));
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
