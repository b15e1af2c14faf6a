//! The engine: requests in, steps, events out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use exotherm_kernels::{Backend, Batch, Executor, Program};

use crate::blocks::Books;
use crate::config::EngineConfig;
use crate::error::EngineError;
use crate::request::{Event, Request, RequestId};
use crate::sampling::Sampler;
use crate::scheduler::{Plan, Scheduler};

pub struct Engine {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    sampler: Sampler,
    batch: Batch,
    sampled: Vec<u32>,
    /// Floats from one row of logits to the next, and how many of them are tokens that may be given back.
    logits_width: usize,
    choices: usize,
    ctx: usize,
    vocab: usize,
    events: Vec<Event>,
    /// What happened between two steps, told with the next.
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
        let logits_width = program.buffer(program.logits()).width;
        Ok(Engine {
            scheduler: Scheduler::new(program, &config, limits.blocks as u32),
            executor,
            sampler: Sampler::default(),
            batch: Batch::with_capacity(limits.rows, config.max_seqs, limits.blocks),
            sampled: Vec::with_capacity(config.max_seqs),
            logits_width,
            choices: logits_width.min(program.vocab()),
            ctx: config.ctx,
            vocab: program.vocab(),
            events: Vec::with_capacity(2 * config.max_seqs),
            pending_events: Vec::new(),
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
    /// are over (the next step says so); the others go on.
    pub fn step(&mut self) -> Result<&[Event], EngineError> {
        self.events.clear();
        if let Some(plan) = self.scheduler.plan(Instant::now()) {
            // What the program panicked over is the step's own; the plan tells whose step it was.
            let ran = catch_unwind(AssertUnwindSafe(|| self.run(&plan)));
            if let Err(error) = ran.unwrap_or_else(|panic| Err(EngineError::panicked(&*panic))) {
                self.scheduler.abandon(plan, Instant::now(), &mut self.pending_events);
                return Err(error);
            }
            self.scheduler.commit(plan, &self.sampled, Instant::now(), &mut self.events);
        }
        self.events.append(&mut self.pending_events);
        Ok(&self.events)
    }

    fn run(&mut self, plan: &Plan) -> Result<(), EngineError> {
        self.scheduler.fill(plan, &mut self.batch);
        self.executor.run(&self.batch)?;
        self.sampled.clear();
        let wanted = plan.rows().iter().filter(|row| row.wants_logits);
        for (row, logits) in wanted.zip(self.executor.logits().chunks_exact(self.logits_width)) {
            let sequence = self.scheduler.at(row.place);
            let logits = &logits[..self.choices];
            let token =
                self.sampler.sample(&sequence.sampling, logits, sequence.prompt(), sequence.output())?;
            self.sampled.push(token);
        }
        Ok(())
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
