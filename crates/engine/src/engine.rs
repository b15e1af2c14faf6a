//! The engine: requests in, steps, events out.

use std::time::Instant;

use exotherm_kernels::{BLOCK, Backend, Batch, Executor, Place, Program, Sampled};

use crate::blocks::Books;
use crate::config::EngineConfig;
use crate::embedding::Embedder;
use crate::error::EngineError;
use crate::request::{Event, Request, RequestId};
use crate::scheduler::{Plan, Scheduler, SchedulerStats, StateCopy};
use crate::stats::StepTimes;

pub struct Engine {
    pub(crate) scheduler: Scheduler,
    executor: Box<dyn Executor>,
    batch: Batch,
    /// Whether a step is under way, and what it is to run.
    is_stepping: bool,
    plan: Option<Plan>,
    sampled: Vec<Sampled>,
    embedder: Option<Embedder>,
    times: StepTimes,
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
        let limits = config.limits(program, backend)?;
        let executor = backend.compile(program, &limits)?;
        debug_assert_eq!(
            executor.memory(),
            backend.memory(program, &limits),
            "it takes what it said it would"
        );
        let tables = config.ctx.div_ceil(BLOCK).saturating_mul(config.max_seqs);
        Ok(Engine {
            scheduler: Scheduler::new(program, &config, &limits),
            executor,
            batch: Batch::with_capacity(limits.rows, config.max_seqs, tables.min(limits.blocks)),
            is_stepping: false,
            plan: None,
            sampled: Vec::with_capacity(config.max_seqs),
            embedder: Embedder::new(program),
            times: StepTimes::default(),
            ctx: config.ctx,
            vocab: program.vocab(),
            events: Vec::with_capacity(2 * config.max_seqs),
            pending_events: Vec::with_capacity(2 * config.max_seqs),
        })
    }

    /// Queues a request. What cannot be done as asked is refused here; nothing is ever cut short silently. Of a request
    /// of several answers this is the name of the first (`RequestId::choice`).
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        self.scheduler.submit(request, Instant::now())
    }

    /// Runs one step of everything that can run and tells what came of it. After an error the step's requests
    /// are over (the next step says so); the others go on. Where logits are no numbers, only the requests they were for are
    /// over; what came of the rest of the step is told with the next one.
    pub fn step(&mut self) -> Result<&[Event], EngineError> {
        // A step that broke off and that nobody told of.
        self.fail_step();
        self.is_stepping = true;
        self.events.clear();
        self.events.append(&mut self.pending_events);
        let now = Instant::now();
        self.scheduler.expire(now, &mut self.events);
        self.plan = self.scheduler.plan(now);
        self.times.plan += now.elapsed();
        let position = match self.run() {
            Ok(position) => position,
            Err(error) => {
                self.fail_step();
                return Err(error);
            }
        };
        if let Some(plan) = self.plan.take() {
            let now = Instant::now();
            self.scheduler.commit(plan, &self.sampled, now, &mut self.events);
            self.times.commit += now.elapsed();
        }
        self.is_stepping = false;
        if let Some(position) = position {
            self.pending_events.append(&mut self.events);
            return Err(EngineError::NotNumbers { position });
        }
        Ok(&self.events)
    }

    /// Runs the plan and chooses its tokens; the first position, if any, whose logits are no numbers.
    fn run(&mut self) -> Result<Option<usize>, EngineError> {
        let Some(plan) = &self.plan else { return Ok(None) };
        let begin = Instant::now();
        self.scheduler.fill(plan, &mut self.batch);
        copy_state(self.executor.as_mut(), plan.before());
        self.executor.run(&self.batch)?;
        copy_state(self.executor.as_mut(), plan.after());
        if let Some(embedder) = &self.embedder {
            embed(embedder, &self.scheduler, plan, self.executor.as_ref());
        }
        let ran = Instant::now();
        self.times.run += ran - begin;
        let rows = self.scheduler.sample_rows(plan);
        self.executor.sample(&rows, &mut self.sampled)?;
        self.times.sample += ran.elapsed();
        let failed = self.sampled.iter().position(|sampled| sampled.token.is_none());
        Ok(failed.map(|at| rows[at].position))
    }

    /// Ends the requests of a step that did not come to its end because something panicked on the way; the next step says
    /// so. Where no step is under way nothing happens.
    pub fn fail_step(&mut self) {
        if !std::mem::take(&mut self.is_stepping) {
            return;
        }
        // What the step was to tell is told by the next.
        self.pending_events.append(&mut self.events);
        self.scheduler.abandon(self.plan.take(), Instant::now(), &mut self.pending_events);
    }

    /// Ends a request wherever it is and takes back all it has. Its full blocks can still be found by the requests after
    /// it.
    pub fn cancel(&mut self, id: RequestId) {
        self.pending_events.extend(self.scheduler.cancel(id, Instant::now()));
    }

    /// Forgets the beginnings of all requests that are over: the next ones run as if they were the first.
    pub fn forget_prefixes(&mut self) {
        self.scheduler.forget_prefixes();
    }

    /// Whether a step has nothing to do and nothing to tell.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.pending_events.is_empty()
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

    pub fn stats(&self) -> SchedulerStats {
        self.scheduler.stats()
    }

    /// Where the time of all steps so far went.
    pub fn times(&self) -> StepTimes {
        self.times
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

/// Takes in the hidden states of those rows that belong to an embedding.
fn embed(embedder: &Embedder, scheduler: &Scheduler, plan: &Plan, executor: &dyn Executor) {
    let rows = plan.rows().iter().map(|row| (row, scheduler.at(row.place)));
    if rows.clone().all(|(_, sequence)| sequence.embedding.is_none()) {
        return;
    }
    let hidden = executor.read(Place::Buffer(embedder.hidden));
    let mut first = 0;
    for (row, sequence) in rows {
        let end = first + row.len as usize * embedder.width();
        if let Some(embedding) = &sequence.embedding {
            embedder.take(embedding, row.start as usize, &hidden[first..end], sequence.prompt_len);
        }
        first = end;
    }
}

fn copy_state(executor: &mut dyn Executor, copies: &[StateCopy]) {
    for copy in copies {
        match *copy {
            StateCopy::Block { from, to } => executor.copy_block(from, to),
            StateCopy::Slot { from, to } => executor.copy_slot(from, to),
        }
    }
}
