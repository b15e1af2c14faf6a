//! The engine: requests in, steps, events out.

use std::sync::Arc;
use std::time::Instant;

use exotherm_kernels::{
    BLOCK, Backend, BackendError, Batch, Executor, Limits, Place, Program, SampleRow, Sampled,
};

use crate::blocks::Books;
use crate::config::EngineConfig;
use crate::embedding::Embedder;
use crate::error::EngineError;
use crate::request::{Event, Request, RequestId};
use crate::restart::{Gone, Rebuild};
use crate::scheduler::{Bounds, Plan, Scheduler, SchedulerStats, StateCopy};
use crate::stats::StepTimes;

/// What the time is.
pub(crate) type Clock = Box<dyn Fn() -> Instant + Send>;

pub struct Engine {
    pub(crate) scheduler: Scheduler,
    executor: Box<dyn Executor>,
    limits: Limits,
    /// Makes another executor where this one's device fails.
    rebuild: Option<Rebuild>,
    /// Whether it has failed.
    is_lost: bool,
    batch: Batch,
    /// Whether a step is under way, and what it is to run.
    is_stepping: bool,
    plan: Option<Plan>,
    clock: Clock,
    /// Empty but in a step; kept for its memory.
    sample_rows: Vec<SampleRow<'static>>,
    sampled: Vec<Sampled>,
    embedder: Option<Embedder>,
    times: StepTimes,
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
        Ok(Engine {
            scheduler: Scheduler::new(program, &config, &limits),
            executor,
            rebuild: None,
            is_lost: false,
            batch: Batch::with_capacity(limits.rows, config.max_seqs, table_entries(&config, &limits)),
            is_stepping: false,
            plan: None,
            clock: Box::new(Instant::now),
            // Several of them may be of the same logits.
            sample_rows: Vec::with_capacity(limits.logit_rows + config.max_seqs),
            sampled: Vec::with_capacity(limits.logit_rows + config.max_seqs),
            embedder: Embedder::new(program),
            times: StepTimes::default(),
            events: Vec::with_capacity(2 * config.max_seqs),
            pending_events: Vec::with_capacity(2 * config.max_seqs),
            limits,
        })
    }

    /// Says how another executor is made if this one's device fails.
    pub fn set_rebuild(&mut self, rebuild: Rebuild) {
        self.rebuild = Some(rebuild);
    }

    /// Whether the device has failed and something is to be done about it.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost && self.rebuild.is_some()
    }

    /// Makes another executor in place of one whose device has failed. What runs begins anew with the tokens that it has.
    pub fn restore(&mut self) -> Result<(), EngineError> {
        let Some(rebuild) = &mut self.rebuild else { return Ok(()) };
        // The one that comes may need the room of the one that goes.
        self.executor = Box::new(Gone);
        let made = rebuild(&self.limits);
        self.executor = made.map_err(|why| EngineError::Backend(BackendError::Device(why)))?;
        self.scheduler.lose_state();
        self.is_lost = false;
        Ok(())
    }

    /// Keeps time by another clock.
    #[cfg(test)]
    pub(crate) fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Queues a request. What cannot be done as asked is refused here; nothing is ever cut short silently. Of a request
    /// of several answers this is the name of the first (`RequestId::choice`).
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        Ok(self.submit_all(std::slice::from_ref(&request))?[0])
    }

    /// Queues requests, all of them or none.
    pub fn submit_all(&mut self, requests: &[Request]) -> Result<Vec<RequestId>, EngineError> {
        self.scheduler.submit(requests, (self.clock)())
    }

    /// Runs one step of everything that can run and tells what came of it. Where logits are no numbers, the requests that
    /// they were for fail, and they alone. After an error all of the step's requests are over (the next step says so); the
    /// others go on.
    pub fn step(&mut self) -> Result<&[Event], EngineError> {
        self.fail_step("the step before broke off");
        self.is_stepping = true;
        self.events.clear();
        self.events.append(&mut self.pending_events);
        let now = (self.clock)();
        self.scheduler.expire(now, &mut self.events);
        self.plan = self.scheduler.plan(now);
        self.times.plan += (self.clock)() - now;
        if let Err(error) = self.run() {
            self.is_lost |= matches!(error, EngineError::Backend(BackendError::Device(_)));
            self.fail_step(&error.to_string());
            return Err(error);
        }
        if let Some(plan) = self.plan.take() {
            let now = (self.clock)();
            self.scheduler.commit(plan, &self.sampled, now, &mut self.events);
            self.times.commit += (self.clock)() - now;
        }
        self.is_stepping = false;
        Ok(&self.events)
    }

    /// Makes what a failed step left to be told by the next one a part of what it told itself.
    pub(crate) fn tell_failed(&mut self) {
        self.events.append(&mut self.pending_events);
    }

    /// What the last step told, once more.
    pub(crate) fn events(&self) -> &[Event] {
        &self.events
    }

    /// Runs the plan and chooses its tokens.
    fn run(&mut self) -> Result<(), EngineError> {
        let Some(plan) = &self.plan else { return Ok(()) };
        let begin = (self.clock)();
        self.scheduler.fill(plan, &mut self.batch);
        copy_state(self.executor.as_mut(), plan.before());
        self.executor.run(&self.batch)?;
        copy_state(self.executor.as_mut(), plan.after());
        if let Some(embedder) = &self.embedder {
            embed(embedder, &self.scheduler, plan, self.executor.as_ref())?;
        }
        let ran = (self.clock)();
        self.times.run += ran - begin;
        let mut rows = recycled(std::mem::take(&mut self.sample_rows));
        rows.extend(self.scheduler.sample_rows(plan));
        let sampled = self.executor.sample(&rows, &mut self.sampled);
        self.sample_rows = recycled(rows);
        self.times.sample += (self.clock)() - ran;
        Ok(sampled?)
    }

    /// Ends the requests of what did not come to its end because something panicked on the way, and says why with the next
    /// step: those of a step that is under way; all, where things were being moved. Else nothing happens.
    pub fn fail_step(&mut self, why: &str) {
        let was_stepping = std::mem::take(&mut self.is_stepping);
        if was_stepping {
            // What the step was to tell is told by the next.
            self.pending_events.append(&mut self.events);
        } else if !self.scheduler.broke_off() {
            return;
        }
        let (fault, now): (Arc<str>, _) = (why.into(), (self.clock)());
        self.scheduler.abandon(self.plan.take(), &fault, now, &mut self.pending_events);
    }

    /// Ends a request wherever it is and takes back all it has. Its full blocks can still be found by the requests after
    /// it.
    pub fn cancel(&mut self, id: RequestId) {
        self.pending_events.extend(self.scheduler.cancel(id, (self.clock)()));
    }

    /// Whether a request is under way, or its end is still to be told.
    pub(crate) fn has(&self, id: RequestId) -> bool {
        let is_end = |event: &Event| matches!(event, Event::Finished { id: of, .. } if *of == id);
        self.scheduler.has(id) || self.pending_events.iter().any(is_end)
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
        self.scheduler.bounds().ctx
    }

    pub fn vocab(&self) -> usize {
        self.scheduler.bounds().vocab
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.scheduler.bounds()
    }

    /// Goes through all books; says what is wrong.
    pub fn audit(&self) -> Result<(), String> {
        self.scheduler.audited()
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
fn embed(
    embedder: &Embedder,
    scheduler: &Scheduler,
    plan: &Plan,
    executor: &dyn Executor,
) -> Result<(), BackendError> {
    let rows = plan.rows().iter().map(|row| (row, scheduler.at(row.place)));
    if rows.clone().all(|(_, sequence)| sequence.embedding.is_none()) {
        return Ok(());
    }
    let hidden = executor.fetch(Place::Buffer(embedder.hidden))?;
    let mut first = 0;
    for (row, sequence) in rows {
        let end = first + row.len as usize * embedder.width();
        if let Some(embedding) = &sequence.embedding {
            embedder.take(embedding, row.start as usize, &hidden[first..end], sequence.prompt_len);
        }
        first = end;
    }
    Ok(())
}

fn copy_state(executor: &mut dyn Executor, copies: &[StateCopy]) {
    for copy in copies {
        match *copy {
            StateCopy::Block { from, to } => executor.copy_block(from, to),
            StateCopy::Slot { from, to } => executor.copy_slot(from, to),
        }
    }
}

/// The most entries that the block tables of a step have together. Tables may share blocks, so these may be more than there
/// are blocks.
fn table_entries(config: &EngineConfig, limits: &Limits) -> usize {
    config.ctx.div_ceil(BLOCK).min(limits.blocks).saturating_mul(config.max_seqs)
}

/// An empty vector in the same memory: there is nothing in it that could live too short.
fn recycled<'a>(mut rows: Vec<SampleRow>) -> Vec<SampleRow<'a>> {
    rows.clear();
    rows.into_iter().map(|_| unreachable!("it is empty")).collect()
}

#[cfg(test)]
mod tests {
    use exotherm_kernels::Sampling;

    use super::*;
    use crate::simulator::model::{Fake, State, program};

    #[test]
    fn an_emptied_vector_keeps_its_memory() {
        let (sampling, tokens) = (Sampling::default(), vec![1, 2, 3]);
        let (prompt, output) = tokens.split_at(2);
        let mut rows = Vec::with_capacity(7);
        rows.push(SampleRow {
            logits: 0,
            sampling: &sampling,
            prompt,
            output,
            position: 3,
            logprobs: None,
            given: None,
        });
        let (at, capacity) = (rows.as_ptr() as usize, rows.capacity());
        let again: Vec<SampleRow<'static>> = recycled(rows);
        assert_eq!((again.as_ptr() as usize, again.capacity(), again.len()), (at, capacity, 0));
    }

    #[test]
    fn a_step_has_room_for_tables_that_share_their_blocks() {
        let (program, backend) = (program(State::Kv), Fake::default());
        let config = EngineConfig { max_seqs: 4, blocks: Some(8), ..EngineConfig::new(100) };
        let limits = config.limits(&program, &backend).unwrap();
        let room = table_entries(&config, &limits);
        let mut engine = Engine::new(&program, &backend, config).unwrap();
        engine.submit(Request { n: 4, ..Request::new(vec![1; 64], 9) }).unwrap();
        let mut most = 0;
        while !engine.is_idle() {
            engine.step().unwrap();
            most = most.max(engine.batch().block_entries());
        }
        assert!(most > limits.blocks && most <= room, "{most} of {room}, {} blocks", limits.blocks);
    }
}
