//! The engine: requests in, steps, events out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use exotherm_kernels::{Backend, Batch, Executor, Program, Sampled};

use crate::blocks::Books;
use crate::config::EngineConfig;
use crate::error::EngineError;
use crate::request::{Event, Request, RequestId};
use crate::scheduler::{Plan, Scheduler};

pub struct Engine {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    batch: Batch,
    sampled: Vec<Sampled>,
    ctx: usize,
    vocab: usize,
    events: Vec<Event>,
    /// What happened and was not told yet.
    pending_events: Vec<Event>,
}

impl Engine {
    /// Compiles the program and takes all the memory that `MemoryPlan` names.
    pub fn new(
        program: &Program,
        backend: &dyn Backend,
        config: EngineConfig,
    ) -> Result<Engine, EngineError> {
        let limits = config.limits(program)?;
        let executor = backend.compile(program, &limits)?;
        Ok(Engine {
            scheduler: Scheduler::new(program, &config, limits.blocks as u32),
            executor,
            batch: Batch::with_capacity(limits.rows, config.max_seqs, limits.blocks),
            sampled: Vec::with_capacity(config.max_seqs),
            ctx: config.ctx,
            vocab: program.vocab(),
            events: Vec::with_capacity(2 * config.max_seqs),
            pending_events: Vec::with_capacity(2 * config.max_seqs),
        })
    }

    /// Queues a request. What cannot be done as asked is refused here; nothing is ever cut short silently.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        self.scheduler.submit(request, Instant::now())
    }

    /// Continues a finished request that is held, a chat's next turn: what its state and the new prompt have
    /// in common is not run again. `previous` is over when this succeeds and untouched when it does not.
    pub fn submit_after(&mut self, previous: RequestId, request: Request) -> Result<RequestId, EngineError> {
        self.scheduler.submit_after(previous, request, Instant::now())
    }

    /// Runs one step of everything that can run and tells what came of it. After an error the step's requests
    /// are over (the next step says so); the others go on. Where logits are no numbers, only the requests they were for are
    /// over; what came of the rest of the step is told with the next one.
    pub fn step(&mut self) -> Result<&[Event], EngineError> {
        self.events.clear();
        if let Some(plan) = self.scheduler.plan(Instant::now()) {
            // What the program panicked over is the step's own; the plan tells whose step it was.
            let ran = catch_unwind(AssertUnwindSafe(|| self.run(&plan)));
            let position = match ran.unwrap_or_else(|panic| Err(EngineError::panicked(&*panic))) {
                Ok(position) => position,
                Err(error) => {
                    self.scheduler.abandon(plan, Instant::now(), &mut self.pending_events);
                    return Err(error);
                }
            };
            self.scheduler.commit(plan, &self.sampled, Instant::now(), &mut self.pending_events);
            if let Some(position) = position {
                return Err(EngineError::NotNumbers { position });
            }
        }
        self.events.append(&mut self.pending_events);
        Ok(&self.events)
    }

    /// Runs the plan and chooses its tokens; the first position, if any, whose logits are no numbers.
    fn run(&mut self, plan: &Plan) -> Result<Option<usize>, EngineError> {
        self.scheduler.fill(plan, &mut self.batch);
        self.executor.run(&self.batch)?;
        let rows = self.scheduler.sample_rows(plan);
        self.executor.sample(&rows, &mut self.sampled)?;
        let failed = self.sampled.iter().position(|sampled| sampled.token.is_none());
        Ok(failed.map(|at| rows[at].position))
    }

    /// Ends a request wherever it is, held ones too, and takes back all it has.
    pub fn cancel(&mut self, id: RequestId) {
        self.pending_events.extend(self.scheduler.cancel(id, Instant::now()));
    }

    /// Ends a request early; where it asked to be held, it is, so that a chat can go on from what was said so
    /// far.
    pub fn interrupt(&mut self, id: RequestId) {
        self.pending_events.extend(self.scheduler.interrupt(id, Instant::now()));
    }

    /// Whether a step has nothing to do and nothing to tell.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.pending_events.is_empty()
    }

    /// Requests that wait to begin and those that run.
    pub fn load(&self) -> (usize, usize) {
        self.scheduler.load()
    }

    /// Tokens that a sequence may have, prompt and answer together.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    pub fn vocab(&self) -> usize {
        self.vocab
    }

    pub fn books(&self) -> Books {
        self.scheduler.books()
    }

    /// The rows of the last step, for counting what it had to do.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The compiled program, for measuring it. Running it while requests are under way spoils their state.
    pub fn executor(&mut self) -> &mut dyn Executor {
        self.executor.as_mut()
    }
}
