//! The engine's thread.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::choice::{Choice, Facts};
use super::{Command, Shared, Submission, Update, lock};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::request::{Event, FinishReason, Request, RequestId};
use crate::stats::{EngineStats, Outcomes};

/// How often it is tried to open a device again, and how much longer is waited before it each time.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 1000 });

pub(super) struct Driver {
    engine: Engine,
    inbox: Receiver<Command>,
    desk: Desk,
}

impl Driver {
    pub fn new(engine: Engine, inbox: Receiver<Command>, shared: Arc<Shared>) -> Driver {
        let desk = Desk { active: HashMap::new(), stats: EngineStats::default(), shared };
        Driver { engine, inbox, desk }
    }

    pub fn run(mut self) {
        while self.turn() {}
    }

    /// Whatever there is to do next; false if it is time to end. A panic on the way fails the requests concerned.
    fn turn(&mut self) -> bool {
        let goes_on = match catch_unwind(AssertUnwindSafe(|| self.work())) {
            Ok(goes_on) => goes_on,
            Err(panic) => self.recover(&EngineError::panicked(&*panic).to_string()),
        };
        self.desk.shared.ring();
        goes_on
    }

    fn work(&mut self) -> bool {
        let goes_on = self.take_commands();
        if !goes_on {
            self.desk.active.keys().for_each(|&id| self.engine.cancel(id));
        }
        // A step may take long: what it works on is to be seen meanwhile, and who was taken in is not to wait for it.
        self.publish();
        self.desk.shared.ring();
        self.step();
        goes_on && self.has_device()
    }

    /// Whether there is a device to compute on. One that has failed is opened again once everybody concerned has heard of it;
    /// false if it cannot be.
    fn has_device(&mut self) -> bool {
        let shared = Arc::clone(&self.desk.shared);
        for attempt in 0..ATTEMPTS {
            if !self.engine.is_lost() {
                break;
            }
            shared.restoring.store(true, Ordering::Release);
            std::thread::sleep(PAUSE * attempt);
            // Whoever makes it tells why it could not be made.
            let _ = self.engine.restore();
        }
        shared.restoring.store(false, Ordering::Release);
        shared.died.fetch_or(self.engine.is_lost(), Ordering::AcqRel);
        !self.engine.is_lost()
    }

    /// Puts things in order after a panic; false if even that panics and the engine is not to be trusted any more.
    fn recover(&mut self, why: &str) -> bool {
        let mut mend = || catch_unwind(AssertUnwindSafe(|| self.engine.fail_step(why))).is_ok();
        // If the step's requests cannot be ended alone, everything is begun anew.
        let is_mended = mend() || mend();
        let is_lost = |id: &&RequestId| !self.engine.has(**id);
        let lost: Vec<RequestId> = self.desk.active.keys().filter(is_lost).copied().collect();
        lost.into_iter().for_each(|id| self.desk.lose(id, why));
        self.desk.shared.died.fetch_or(!is_mended, Ordering::AcqRel);
        is_mended
    }

    /// Does what others asked for, waiting if there is nothing else to do; false if it is time to end.
    fn take_commands(&mut self) -> bool {
        let mut begin = Instant::now();
        if self.engine.is_idle() {
            let Ok(command) = self.inbox.recv() else { return false };
            self.desk.stats.phases.idle += begin.elapsed();
            begin = Instant::now();
            if !self.obey(command) {
                return false;
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(command) => {
                    if !self.obey(command) {
                        return false;
                    }
                }
                Err(TryRecvError::Disconnected) if self.desk.active.is_empty() => return false,
                Err(_) => break,
            }
        }
        self.desk.unheard().for_each(|id| self.engine.cancel(id));
        self.desk.stats.phases.inbox += begin.elapsed();
        true
    }

    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Submit(Submission { requests, choices }) => {
                let engine = &mut self.engine;
                match catch_unwind(AssertUnwindSafe(|| engine.submit_all(&requests))) {
                    Ok(submitted) => self.desk.begin(&requests, submitted, choices),
                    Err(panic) => {
                        self.desk.begin(&requests, Err(EngineError::panicked(&*panic)), choices);
                        resume_unwind(panic);
                    }
                }
            }
            Command::CancelAll => self.desk.active.keys().for_each(|&id| self.engine.cancel(id)),
            Command::Stop => return false,
        }
        true
    }

    /// One step and what came of it. Whoever hears of it finds it counted.
    fn step(&mut self) {
        // What failed is told with the next one, and at once where a device is to be opened again first.
        if self.engine.step().is_err() && self.engine.is_lost() {
            self.engine.tell_failed();
        }
        let now = Instant::now();
        self.engine.events().iter().for_each(|event| self.desk.count_event(event, now));
        self.publish();
        self.engine.events().iter().for_each(|event| self.desk.deliver(event));
        self.desk.stats.phases.deliver += now.elapsed();
    }

    fn publish(&mut self) {
        let stats = &mut self.desk.stats;
        stats.scheduler = self.engine.stats();
        stats.phases.step = self.engine.times();
        *lock(&self.desk.shared.stats) = *stats;
    }
}

/// However the thread ends: nobody is left without an end. What is still in the inbox hears of it when that is dropped.
impl Drop for Driver {
    fn drop(&mut self) {
        let shared = Arc::clone(&self.desk.shared);
        shared.died.fetch_or(std::thread::panicking(), Ordering::AcqRel);
        shared.alive.store(false, Ordering::Release);
        let left = std::mem::take(&mut self.desk.active);
        let outcomes = &mut self.desk.stats.outcomes;
        let died = shared.died.load(Ordering::Acquire);
        *(if died { &mut outcomes.failed } else { &mut outcomes.cancelled }) += left.len() as u64;
        drop(left);
        (self.desk.stats.scheduler.waiting, self.desk.stats.scheduler.running) = (0, 0);
        *lock(&shared.stats) = self.desk.stats;
    }
}

/// Who waits for what the engine makes.
struct Desk {
    active: HashMap<RequestId, Choice>,
    stats: EngineStats,
    shared: Arc<Shared>,
}

impl Desk {
    fn begin(
        &mut self,
        requests: &[Request],
        submitted: Result<Vec<RequestId>, EngineError>,
        choices: Vec<Choice>,
    ) {
        match submitted {
            Ok(ids) => {
                let ids = ids.iter().zip(requests).flat_map(|(id, r)| (0..r.n).map(|i| id.choice(i)));
                for (id, mut choice) in ids.zip(choices) {
                    choice.tell(Update::Accepted);
                    self.active.insert(id, choice);
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for choice in choices {
                    self.count(choice.facts, |outcomes| &mut outcomes.refused);
                    choice.end(Update::Refused(Arc::clone(&error)));
                }
            }
        }
    }

    fn count(&mut self, facts: Facts, outcome: impl Fn(&mut Outcomes) -> &mut u64) {
        *outcome(&mut self.stats.outcomes) += 1;
        if facts.is_embedding {
            *outcome(&mut self.stats.embeddings) += 1;
        }
    }

    /// Ends a request that the engine was just moving when something panicked, and knows nothing of any more.
    fn lose(&mut self, id: RequestId, why: &str) {
        let Some(choice) = self.active.remove(&id) else { return };
        self.count(choice.facts, |outcomes| &mut outcomes.failed);
        choice.fail(why);
    }

    /// Requests that nobody waits for any more.
    fn unheard(&self) -> impl Iterator<Item = RequestId> {
        self.active.iter().filter(|(_, choice)| choice.is_cancelled()).map(|(&id, _)| id)
    }

    fn count_event(&mut self, event: &Event, now: Instant) {
        match *event {
            Event::Prompt { .. } => {}
            Event::Token { id, .. } => {
                let Some(choice) = self.active.get_mut(&id) else { return };
                match choice.last_token.replace(now) {
                    Some(last) => self.stats.between_tokens.note(now - last),
                    None => self.stats.first_token.note(now - choice.submitted),
                }
                self.stats.generated_tokens += 1;
            }
            Event::Finished { id, reason, .. } => {
                let Some(choice) = self.active.get(&id) else { return };
                let is_enough = reason == FinishReason::Cancelled && choice.is_enough();
                self.count(choice.facts, |outcomes| match is_enough {
                    true => &mut outcomes.stop,
                    false => outcomes.of(reason),
                });
            }
        }
    }

    fn deliver(&mut self, event: &Event) {
        let (id, update) = match *event {
            Event::Prompt { id, ref logprobs } => (id, Update::Prompt(Arc::clone(logprobs))),
            Event::Token { id, token, index, ref logprobs } => {
                (id, Update::Token { token, index, logprobs: logprobs.clone() })
            }
            Event::Finished { id, reason, stats, ref fault } => {
                let Some(choice) = self.active.remove(&id) else { return };
                return choice.end(Update::Finished { reason, stats, fault: fault.clone() });
            }
        };
        if let Some(choice) = self.active.get_mut(&id) {
            choice.tell(update);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::channel;

    use exotherm_kernels::Backend;

    use super::super::{EngineHandle, Listener, Refusal, Ticket};
    use super::*;
    use crate::config::EngineConfig;
    use crate::simulator::model::{Fake, Fault, State, program};

    fn prepared() -> (EngineHandle, Driver) {
        let config = EngineConfig { max_seqs: 2, ..EngineConfig::new(64) };
        let engine = Engine::new(&program(State::Kv), &Fake::default(), config).unwrap();
        EngineHandle::prepare(engine, 8)
    }

    fn submit(handle: &EngineHandle, max_tokens: usize) -> (Ticket, Receiver<Update>) {
        let (tell, updates) = channel();
        let listener: Listener = Box::new(move |update| tell.send(update).is_ok());
        let request = Request::new(vec![1; 20], max_tokens);
        (handle.submit(vec![(request, vec![listener])]).unwrap().remove(0), updates)
    }

    /// How a request ended, after how many tokens by its own count, and why if it failed.
    type End = (FinishReason, usize, Option<Arc<str>>);

    /// The tokens heard so far, and the end.
    fn heard(updates: &Receiver<Update>) -> (usize, Option<End>) {
        let (mut tokens, mut end) = (0, None);
        for update in updates.try_iter() {
            assert!(end.is_none(), "nothing comes after the end");
            match update {
                Update::Token { .. } => tokens += 1,
                Update::Finished { reason, stats, fault } => end = Some((reason, stats.generated, fault)),
                Update::Accepted | Update::Prompt(_) => {}
                Update::Refused(error) => panic!("{error}"),
            }
        }
        (tokens, end)
    }

    #[test]
    fn a_panic_outside_of_steps_fails_what_is_there_and_the_thread_goes_on() {
        let (handle, mut driver) = prepared();
        let (ticket, cancelled) = submit(&handle, 9);
        let (_kept, other) = submit(&handle, 9);
        assert!(driver.turn());
        // The books are found to be wrong when the request is cancelled.
        driver.engine.scheduler.lose_a_block();
        drop(ticket);
        assert!(driver.turn() && handle.is_alive());
        assert!(driver.turn());
        for updates in [cancelled, other] {
            let (tokens, end) = heard(&updates);
            let (reason, generated, fault) = end.expect("an end");
            assert_eq!((tokens, reason, generated), (1, FinishReason::Failed, 1));
            assert!(fault.is_some_and(|why| why.contains("counts 1 holders and has 0")));
        }
        assert_eq!(handle.open(), 0);
        let (_kept, next) = submit(&handle, 3);
        (0..3).for_each(|_| assert!(driver.turn()));
        assert_eq!(heard(&next), (3, Some((FinishReason::Length, 3, None))));
        assert_eq!(driver.engine.audit(), Ok(()));
    }

    #[test]
    fn a_device_that_fails_is_opened_again_and_everybody_hears_of_it() {
        let fault = Fault::default();
        let fake = move |fault: &Fault| Fake { fault: fault.clone(), ..Fake::default() };
        let config = EngineConfig { max_seqs: 1, ..EngineConfig::new(64) };
        let program = program(State::Both);
        let mut engine = Engine::new(&program, &fake(&fault), config).unwrap();
        let (again, made) = (fault.clone(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&made);
        engine.set_rebuild(Box::new(move |limits| match count.fetch_add(1, Ordering::Relaxed) {
            0 => Err("it is not there yet".into()),
            _ => fake(&again).compile(&program, limits).map_err(|error| error.to_string()),
        }));
        let (handle, mut driver) = EngineHandle::prepare(engine, 8);
        let (_kept, before) = submit(&handle, 3);
        while handle.open() > 0 {
            assert!(driver.turn());
        }
        let said = heard(&before);
        assert_eq!(said, (3, Some((FinishReason::Length, 3, None))));
        let (_kept, failed) = submit(&handle, 9);
        let (_kept, waiting) = submit(&handle, 3);
        assert!(driver.turn());
        fault.set(Fault::LOST);
        assert!(driver.turn() && handle.is_alive() && !handle.is_restoring());
        let (tokens, end) = heard(&failed);
        let (reason, generated, why) = end.expect("an end");
        assert_eq!((tokens, reason, generated), (1, FinishReason::Failed, 1));
        assert_eq!(why.as_deref(), Some("the GPU failed: a test"));
        assert_eq!(made.load(Ordering::Relaxed), 2);
        // Who waited runs on the new one, and finds nothing that was on the old one.
        let cached = handle.stats().scheduler.cached_tokens;
        while handle.open() > 0 {
            assert!(driver.turn());
        }
        assert_eq!(heard(&waiting), said);
        assert_eq!(handle.stats().scheduler.cached_tokens, cached);
        assert_eq!(driver.engine.audit(), Ok(()));
    }

    #[test]
    fn an_engine_whose_device_stays_away_has_stopped() {
        let fault = Fault::default();
        let config = EngineConfig { max_seqs: 1, ..EngineConfig::new(64) };
        let fake = Fake { fault: fault.clone(), ..Fake::default() };
        let mut engine = Engine::new(&program(State::Kv), &fake, config).unwrap();
        engine.set_rebuild(Box::new(|_| Err("it is gone".into())));
        let (handle, mut driver) = EngineHandle::prepare(engine, 8);
        let (_kept, failed) = submit(&handle, 9);
        let (_kept, waiting) = submit(&handle, 3);
        fault.set(Fault::LOST);
        assert!(!driver.turn());
        drop(driver);
        assert_eq!(heard(&failed).1.expect("an end").2.as_deref(), Some("the GPU failed: a test"));
        let end = Some((FinishReason::Failed, 0, Some("the engine has stopped".into())));
        assert_eq!(heard(&waiting), (0, end));
        assert!(!handle.is_alive() && handle.open() == 0);
    }

    #[test]
    fn who_came_too_late_hears_an_end_and_who_is_cut_off_what_there_was() {
        let (handle, mut driver) = prepared();
        let (_kept, running) = submit(&handle, 30);
        assert!(driver.turn() && driver.turn());
        handle.commands.send(Command::Stop).unwrap();
        let (_late, behind) = submit(&handle, 5);
        driver.run();
        assert_eq!(heard(&running), (2, Some((FinishReason::Cancelled, 2, None))));
        assert_eq!(heard(&behind), (0, Some((FinishReason::Cancelled, 0, None))));
        let stats = handle.stats();
        assert_eq!((handle.open(), stats.outcomes.cancelled, stats.scheduler.running), (0, 1, 0));
        assert!(!handle.is_alive());
    }

    #[test]
    fn a_thread_that_dies_tells_everybody() {
        let (handle, mut driver) = prepared();
        let (_kept, running) = submit(&handle, 30);
        assert!(driver.turn());
        let (_late, unread) = submit(&handle, 5);
        assert!(handle.is_alive());
        let thread = std::thread::spawn(move || {
            let _dies_with_it = driver;
            // Unlike `panic!` this prints nothing.
            resume_unwind(Box::new("a test"));
        });
        assert!(thread.join().is_err());
        for (updates, tokens) in [(running, 1), (unread, 0)] {
            let end = (FinishReason::Failed, tokens, Some("the engine has stopped".into()));
            assert_eq!(heard(&updates), (tokens, Some(end)));
        }
        assert!(!handle.is_alive() && handle.open() == 0);
        let listener: Listener = Box::new(|_| panic!("whoever is refused hears nothing"));
        let refused = handle.submit(vec![(Request::new(vec![1], 1), vec![listener])]);
        assert!(matches!(refused, Err(Refusal::Gone)), "{refused:?}");
        assert_eq!(handle.stats().outcomes.failed, 1);
    }
}
