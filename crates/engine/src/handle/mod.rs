//! The engine on a thread of its own, and the handle through which other threads use it.
//!
//! Whoever submits gives a listener along: the engine's thread calls it with every [`Update`] of that request, so
//! it must not block. A request is cancelled when its [`Ticket`] is dropped or its listener says that nobody hears
//! it any more; either way everything it had is free before the next step. A listener that panics is not called again and
//! its request is cancelled.
//!
//! Whatever else panics on the engine's thread fails the requests concerned, and the thread goes on. Should it end all the
//! same, every listener hears of it, [`EngineHandle::is_alive`] says so and nothing more is taken.

mod choice;
mod driver;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::request::{FinishReason, Request, RequestStats, TokenLogprobs};
use crate::scheduler::Bounds;
use crate::stats::EngineStats;
use choice::{Choice, Facts};
use driver::Driver;

/// What a listener is told of its request: first `Accepted` or `Refused`, or `Finished` where the engine ends before it came
/// to it; after `Refused` and `Finished` no more. It is always told an
/// end, unless it has said that nobody hears it.
#[derive(Debug)]
pub enum Update {
    Accepted,
    Refused(Arc<EngineError>),
    /// How likely each token of the prompt after the first was, where the request asked for it.
    Prompt(Arc<Vec<TokenLogprobs>>),
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
    /// What is wrong with one of the requests, the first or a later one.
    #[error("{error}")]
    Request {
        index: usize,
        #[source]
        error: EngineError,
    },
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
pub struct Ticket(Arc<AtomicU8>);

/// What is still wanted of a choice.
enum Wanted {
    More,
    Nothing,
    Enough,
}

impl Ticket {
    pub fn cancel(&self) {
        let (more, nothing) = (Wanted::More as u8, Wanted::Nothing as u8);
        // What is enough stays so.
        let _ = self.0.compare_exchange(more, nothing, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Ends the request as one that has come to its end: its answer has what was wanted, a stop string for example.
    pub fn is_enough(self) {
        self.0.store(Wanted::Enough as u8, Ordering::Release);
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
    bounds: Bounds,
    /// Requests under way or waiting, and how many there may be.
    open: AtomicUsize,
    most_open: usize,
    draining: AtomicBool,
    /// Whether the thread is there, and if not, whether that was not asked for.
    alive: AtomicBool,
    died: AtomicBool,
    /// Whether its device has failed and is being opened again.
    restoring: AtomicBool,
    stats: Mutex<EngineStats>,
    thread: Mutex<Option<JoinHandle<()>>>,
    bell: OnceLock<Bell>,
}

type Bell = Box<dyn Fn() + Send + Sync>;

impl Shared {
    /// Says that listeners were told something.
    fn ring(&self) {
        if let Some(bell) = self.bell.get() {
            bell();
        }
    }
}

enum Command {
    Submit(Submission),
    CancelAll,
    Stop,
}

/// Requests that are taken all together or not at all.
struct Submission {
    requests: Vec<Request>,
    /// The choices of all of them, one request's after the other's.
    choices: Vec<Choice>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EngineHandle {
    /// Starts the engine's thread, which ends when it is shut down or the last handle is gone. At most `most_open`
    /// requests may be running or waiting.
    pub fn start(engine: Engine, most_open: usize) -> std::io::Result<EngineHandle> {
        let (handle, driver) = EngineHandle::prepare(engine, most_open);
        let thread = Builder::new().name("engine".into()).spawn(|| driver.run())?;
        *lock(&handle.shared.thread) = Some(thread);
        Ok(handle)
    }

    /// A handle, and what its thread is to run.
    fn prepare(engine: Engine, most_open: usize) -> (EngineHandle, Driver) {
        let (commands, inbox) = channel();
        let shared = Arc::new(Shared {
            bounds: engine.bounds(),
            open: AtomicUsize::new(0),
            most_open,
            draining: AtomicBool::new(false),
            alive: AtomicBool::new(true),
            died: AtomicBool::new(false),
            restoring: AtomicBool::new(false),
            stats: Mutex::new(EngineStats { scheduler: engine.stats(), ..EngineStats::default() }),
            thread: Mutex::new(None),
            bell: OnceLock::new(),
        });
        let driver = Driver::new(engine, inbox, Arc::clone(&shared));
        (EngineHandle { commands, shared }, driver)
    }

    /// Queues requests, all of them or none, each with a listener for every one of its choices (so many are its `n`);
    /// gives a ticket for each of these. What can be seen to be wrong without the engine is refused here, and none of the
    /// listeners hears of it; the rest by the first update, before the engine's next step.
    pub fn submit(&self, requests: Vec<(Request, Vec<Listener>)>) -> Result<Vec<Ticket>, Refusal> {
        let shared = &*self.shared;
        if shared.draining.load(Ordering::Acquire) {
            return Err(Refusal::Draining);
        }
        if !self.is_alive() {
            return Err(Refusal::Gone);
        }
        let (mut asked, mut listeners) = (Vec::with_capacity(requests.len()), Vec::new());
        for (index, (mut request, own)) in requests.into_iter().enumerate() {
            request.n = own.len();
            shared.bounds.check(&request).map_err(|error| Refusal::Request { index, error })?;
            listeners.extend(own.into_iter().map(|listener| (listener, Facts::of(&request))));
            asked.push(request);
        }
        let (more, most) = (listeners.len(), shared.most_open);
        let room = |open: usize| open.checked_add(more).filter(|&open| open <= most);
        let counted = shared.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, room);
        counted.map_err(|open| Refusal::Full { open, most })?;
        let choice = |(listener, facts)| Choice::new(listener, facts, Arc::clone(&self.shared));
        let choices: Vec<Choice> = listeners.into_iter().map(choice).collect();
        let tickets = choices.iter().map(|choice| Ticket(choice.wanted())).collect();
        match self.commands.send(Command::Submit(Submission { requests: asked, choices })) {
            Ok(()) => Ok(tickets),
            Err(unsent) => {
                if let Command::Submit(submission) = unsent.0 {
                    submission.choices.into_iter().for_each(Choice::forget);
                }
                Err(Refusal::Gone)
            }
        }
    }

    /// `bell` is called whenever listeners have been told what there was to tell, once for all of a step. So a listener may
    /// leave what it hears for somebody else, who is woken by the bell. It must not block. There is one at most: false if there was one.
    pub fn on_told(&self, bell: impl Fn() + Send + Sync + 'static) -> bool {
        self.shared.bell.set(Box::new(bell)).is_ok()
    }

    /// Whether the engine's thread is there: not after it was shut down, and not if it died of something.
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire)
    }

    /// Whether its device has failed and the model is loaded once more. What is submitted meanwhile waits.
    pub fn is_restoring(&self) -> bool {
        self.shared.restoring.load(Ordering::Acquire)
    }

    /// Tokens that a prompt and its answer may have together.
    pub fn ctx(&self) -> usize {
        self.shared.bounds.ctx
    }

    pub fn vocab(&self) -> usize {
        self.shared.bounds.vocab
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
            // It catches panics; should it have died of one all the same, it is gone as well.
            let _ = thread.join();
        }
    }
}
