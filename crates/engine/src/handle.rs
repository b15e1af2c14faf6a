//! The engine on a thread of its own, and the handle through which other threads use it.
//!
//! Whoever submits gives a listener along: the engine's thread calls it with every [`Update`] of that request, so
//! it must not block. A request is cancelled when its [`Ticket`] is dropped or its listener says that nobody hears
//! it any more; either way everything it had is free before the next step.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::request::{Event, FinishReason, Request, RequestId, RequestStats, TokenLogprobs};
use crate::stats::EngineStats;

/// What a listener is told of its request: first `Accepted` or `Refused`; after `Refused` and `Finished` no more.
#[derive(Debug)]
pub enum Update {
    Accepted,
    Refused(Arc<EngineError>),
    /// Token number `index` of the answer.
    Token {
        token: u32,
        index: usize,
        /// Where the request asked for them.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    Finished {
        reason: FinishReason,
        stats: RequestStats,
        /// Why, for a request that failed.
        fault: Option<Arc<str>>,
    },
}

/// Takes updates on the engine's thread; false if nobody hears them any more.
pub type Listener = Box<dyn FnMut(Update) -> bool + Send>;

/// Why a request was not even handed to the engine.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Request(#[from] EngineError),
    #[error("{open} requests are under way or waiting, {most} are the most")]
    Full { open: usize, most: usize },
    #[error("the engine takes no more requests: it is being shut down")]
    Draining,
    #[error("the engine has stopped")]
    Gone,
}

/// Cancels its request when it is dropped.
#[must_use = "dropping it cancels the request"]
#[derive(Debug)]
pub struct Ticket(Arc<AtomicBool>);

impl Ticket {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[derive(Clone)]
pub struct EngineHandle {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    ctx: usize,
    vocab: usize,
    /// Requests under way or waiting, and how many there may be.
    open: AtomicUsize,
    most_open: usize,
    draining: AtomicBool,
    stats: Mutex<EngineStats>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Command {
    Submit(Vec<Submission>),
    CancelAll,
    Stop,
}

struct Submission {
    request: Request,
    /// Of each of its choices.
    choices: Vec<Active>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EngineHandle {
    /// Starts the engine's thread, which ends when it is shut down or the last handle is gone. At most `most_open`
    /// requests may be running or waiting.
    pub fn start(engine: Engine, most_open: usize) -> std::io::Result<EngineHandle> {
        let (commands, inbox) = channel();
        let shared = Arc::new(Shared {
            ctx: engine.ctx(),
            vocab: engine.vocab(),
            open: AtomicUsize::new(0),
            most_open,
            draining: AtomicBool::new(false),
            stats: Mutex::new(EngineStats { scheduler: engine.stats(), ..EngineStats::default() }),
            thread: Mutex::new(None),
        });
        let desk = Desk {
            active: HashMap::new(),
            fault: None,
            stats: EngineStats::default(),
            shared: Arc::clone(&shared),
        };
        let driver = Driver { engine, inbox, desk };
        let thread = Builder::new().name("engine".into()).spawn(|| driver.run())?;
        *lock(&shared.thread) = Some(thread);
        Ok(EngineHandle { commands, shared })
    }

    /// Queues requests, all of them or none, each with a listener for every one of its choices (so many are its `n`);
    /// gives a ticket for each of these. What can be seen to be wrong without the engine is refused here, the rest by
    /// the first update, before the engine's next step.
    pub fn submit(&self, requests: Vec<(Request, Vec<Listener>)>) -> Result<Vec<Ticket>, Refusal> {
        let shared = &*self.shared;
        if shared.draining.load(Ordering::Acquire) {
            return Err(Refusal::Draining);
        }
        requests.iter().try_for_each(|(request, _)| request.check(shared.ctx, shared.vocab))?;
        let (more, most) = (requests.iter().map(|(_, listeners)| listeners.len()).sum(), shared.most_open);
        let room = |open: usize| open.checked_add(more).filter(|&open| open <= most);
        let counted = shared.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, room);
        counted.map_err(|open| Refusal::Full { open, most })?;
        let now = Instant::now();
        let mut tickets = Vec::with_capacity(more);
        let submission = |(mut request, listeners): (Request, Vec<Listener>)| {
            request.n = listeners.len();
            let choices: Vec<Active> =
                listeners.into_iter().map(|listener| Active::new(listener, now)).collect();
            tickets.extend(choices.iter().map(|choice| Ticket(Arc::clone(&choice.cancelled))));
            Submission { request, choices }
        };
        let submissions = requests.into_iter().map(submission).collect();
        match self.commands.send(Command::Submit(submissions)) {
            Ok(()) => Ok(tickets),
            Err(_) => {
                shared.open.fetch_sub(more, Ordering::AcqRel);
                Err(Refusal::Gone)
            }
        }
    }

    /// Whether the engine's thread is there: not after it was shut down, and not if it died of something.
    pub fn is_alive(&self) -> bool {
        lock(&self.shared.thread).as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Tokens that a prompt and its answer may have together.
    pub fn ctx(&self) -> usize {
        self.shared.ctx
    }

    pub fn vocab(&self) -> usize {
        self.shared.vocab
    }

    /// The most requests that may be running or waiting at a time.
    pub fn most_open(&self) -> usize {
        self.shared.most_open
    }

    /// Requests that are running or waiting.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    /// How things stood after the last step.
    pub fn stats(&self) -> EngineStats {
        *lock(&self.shared.stats)
    }

    /// Refuses requests from now on; those there are go on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
    }

    /// Cancels every request.
    pub fn cancel_all(&self) {
        // An engine that is gone has none.
        let _ = self.commands.send(Command::CancelAll);
    }

    /// Cancels what is left, ends the thread and waits for that.
    pub fn shut_down(&self) {
        self.drain();
        let _ = self.commands.send(Command::Stop);
        let thread = lock(&self.shared.thread).take();
        if let Some(thread) = thread {
            // It catches the panics of its steps; should it have died of another, it is gone as well.
            let _ = thread.join();
        }
    }
}

/// A choice of a request that the engine has.
struct Active {
    listener: Listener,
    cancelled: Arc<AtomicBool>,
    submitted: Instant,
    last_token: Option<Instant>,
}

/// The engine's thread.
struct Driver {
    engine: Engine,
    inbox: Receiver<Command>,
    desk: Desk,
}

impl Driver {
    fn run(mut self) {
        let mut healthy = true;
        while healthy && self.take_commands() {
            // A step may take long, and what it works on is to be seen meanwhile.
            self.publish();
            healthy = self.step();
            self.publish();
        }
        self.desk.shared.draining.store(true, Ordering::Release);
        self.desk.end_all(if healthy { FinishReason::Cancelled } else { FinishReason::Failed });
        self.publish();
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
            Command::Submit(submissions) => {
                for Submission { request, choices } in submissions {
                    self.desk.begin(self.engine.submit(request), choices);
                }
            }
            Command::CancelAll => self.desk.active.keys().for_each(|&id| self.engine.cancel(id)),
            Command::Stop => return false,
        }
        true
    }

    /// One step and what came of it; false if the engine is not to be trusted any more.
    fn step(&mut self) -> bool {
        let Driver { engine, desk, .. } = self;
        let stepped = catch_unwind(AssertUnwindSafe(move || {
            let engine = engine;
            engine.step()
        }));
        let now = Instant::now();
        match stepped {
            Ok(Ok(events)) => events.iter().for_each(|event| desk.deliver(event, now)),
            Ok(Err(error)) => desk.fault = Some(error.to_string().into()),
            Err(panic) => {
                desk.fault = Some(EngineError::panicked(&*panic).to_string().into());
                return catch_unwind(AssertUnwindSafe(|| self.engine.fail_step())).is_ok();
            }
        }
        desk.stats.phases.deliver += now.elapsed();
        true
    }

    fn publish(&mut self) {
        let stats = &mut self.desk.stats;
        stats.scheduler = self.engine.stats();
        stats.phases.step = self.engine.times();
        *lock(&self.desk.shared.stats) = *stats;
    }
}

/// Who waits for what the engine makes.
struct Desk {
    active: HashMap<RequestId, Active>,
    /// Why a step failed, for the requests that end of it.
    fault: Option<Arc<str>>,
    stats: EngineStats,
    shared: Arc<Shared>,
}

impl Desk {
    fn begin(&mut self, submitted: Result<RequestId, EngineError>, choices: Vec<Active>) {
        match submitted {
            Ok(id) => {
                for (i, mut choice) in choices.into_iter().enumerate() {
                    choice.tell(Update::Accepted);
                    self.active.insert(id.choice(i), choice);
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for mut choice in choices {
                    self.stats.outcomes.refused += 1;
                    choice.tell(Update::Refused(Arc::clone(&error)));
                    self.shared.open.fetch_sub(1, Ordering::AcqRel);
                }
            }
        }
    }

    /// Requests that nobody waits for any more.
    fn unheard(&self) -> impl Iterator<Item = RequestId> {
        self.active.iter().filter(|(_, a)| a.cancelled.load(Ordering::Acquire)).map(|(&id, _)| id)
    }

    fn deliver(&mut self, event: &Event, now: Instant) {
        match *event {
            Event::Token { id, token, index, ref logprobs } => {
                let Some(active) = self.active.get_mut(&id) else { return };
                match active.last_token.replace(now) {
                    Some(last) => self.stats.between_tokens.note(now - last),
                    None => self.stats.first_token.note(now - active.submitted),
                }
                self.stats.generated_tokens += 1;
                active.tell(Update::Token { token, index, logprobs: logprobs.clone() });
            }
            Event::Finished { id, reason, stats } => {
                let Some(active) = self.active.remove(&id) else { return };
                self.end(active, reason, stats);
            }
        }
    }

    fn end(&mut self, mut active: Active, reason: FinishReason, stats: RequestStats) {
        let outcomes = &mut self.stats.outcomes;
        *match reason {
            FinishReason::Stop(_) => &mut outcomes.stop,
            FinishReason::Length => &mut outcomes.length,
            FinishReason::Cancelled => &mut outcomes.cancelled,
            FinishReason::Deadline => &mut outcomes.late,
            FinishReason::Failed => &mut outcomes.failed,
        } += 1;
        let fault = self.fault.clone().filter(|_| reason == FinishReason::Failed);
        active.tell(Update::Finished { reason, stats, fault });
        self.shared.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// Tells whoever is left that the engine is gone.
    fn end_all(&mut self, reason: FinishReason) {
        for (_, active) in std::mem::take(&mut self.active) {
            self.end(active, reason, RequestStats::default());
        }
    }
}

impl Active {
    fn new(listener: Listener, submitted: Instant) -> Active {
        Active { listener, cancelled: Arc::default(), submitted, last_token: None }
    }

    fn tell(&mut self, update: Update) {
        if !(self.listener)(update) {
            self.cancelled.store(true, Ordering::Release);
        }
    }
}
