//! The only one that moves sequences: decides what runs, and takes in what came of it.

use std::collections::VecDeque;
use std::time::Instant;

use exotherm_kernels::{BLOCK, Batch, Program, SampleRow, Sampled};

use crate::blocks::{BlockPool, Books};
use crate::config::EngineConfig;
use crate::error::EngineError;
use crate::request::{Event, FinishReason, Request, RequestId, TokenLogprobs};
use crate::sequence::Sequence;

/// The unit of work: tokens `start..start + len` of a sequence. A piece of a prompt and a decoded token are
/// the same thing; the sequence whose last token is in it gets a new one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// The sequence's place, which is its slot of recurrent state too.
    pub place: u32,
    pub start: u32,
    pub len: u32,
    pub wants_logits: bool,
}

/// One step's work. It cannot be copied and `commit` consumes it, so no step is taken in twice.
pub(crate) struct Plan {
    rows: Vec<Row>,
}

pub(crate) struct Scheduler {
    ctx: usize,
    chunk: usize,
    vocab: usize,
    has_kv: bool,
    is_recurrent: bool,
    pool: BlockPool,
    /// Running and held sequences.
    places: Vec<Option<Sequence>>,
    /// Places of the running ones, in the order in which they began.
    running: Vec<u32>,
    waiting: VecDeque<Sequence>,
    /// The rows of a plan that was committed, for the next.
    spare_rows: Vec<Row>,
    next_id: u64,
}

impl Scheduler {
    pub fn new(program: &Program, config: &EngineConfig, blocks: u32) -> Scheduler {
        Scheduler {
            ctx: config.ctx,
            chunk: config.chunk,
            vocab: program.vocab(),
            has_kv: !program.state().kv.is_empty(),
            is_recurrent: !program.state().recurrent.is_empty(),
            pool: BlockPool::new(blocks),
            places: (0..config.max_seqs).map(|_| None).collect(),
            running: Vec::with_capacity(config.max_seqs),
            waiting: VecDeque::new(),
            spare_rows: Vec::with_capacity(config.max_seqs),
            next_id: 0,
        }
    }

    fn new_id(&mut self) -> RequestId {
        self.next_id += 1;
        RequestId(self.next_id)
    }

    pub fn submit(&mut self, request: Request, now: Instant) -> Result<RequestId, EngineError> {
        request.check(self.ctx, self.vocab)?;
        // Sequences that are held leave only when they are told to: behind so many, a request could wait for
        // ever.
        let holds = self.places.iter().flatten().chain(&self.waiting).filter(|s| s.hold).count();
        if holds >= self.places.len() {
            return Err(EngineError::AllHeld { max_seqs: self.places.len() });
        }
        let id = self.new_id();
        self.waiting.push_back(Sequence::new(id, request, now));
        Ok(id)
    }

    pub fn submit_after(
        &mut self,
        previous: RequestId,
        request: Request,
        now: Instant,
    ) -> Result<RequestId, EngineError> {
        request.check(self.ctx, self.vocab)?;
        let place = self.place_of(previous).filter(|&p| self.at(p).is_held);
        let place = place.ok_or(EngineError::NotHeld(previous))?;
        let id = self.new_id();
        let old = self.places[place as usize].take().expect("a held sequence has its place");
        let mut sequence = old.continued(id, request, self.is_recurrent, now);
        let blocks = self.blocks_for(sequence.computed);
        self.pool.resize(&mut sequence.blocks, blocks);
        self.places[place as usize] = Some(sequence);
        self.running.push(place);
        Ok(id)
    }

    /// Lets waiting sequences in and says what is to run: all sequences that wait for one token to run, then
    /// the prompts, with the rows that are left of the chunk but one at least, so that they cannot starve.
    pub fn plan(&mut self, now: Instant) -> Option<Plan> {
        self.admit();
        let mut rows = std::mem::take(&mut self.spare_rows);
        rows.clear();
        let is_decode = |s: &Sequence| s.pending() == 1;
        for i in 0..self.running.len() {
            if is_decode(self.at(self.running[i])) {
                rows.push(self.row(self.running[i], 1, now));
            }
        }
        let mut left = self.chunk.saturating_sub(rows.len()).max(1);
        for i in 0..self.running.len() {
            if left > 0 && !is_decode(self.at(self.running[i])) {
                rows.push(self.row(self.running[i], left, now));
                left -= rows.last().map_or(0, |row| row.len as usize);
            }
        }
        if rows.is_empty() {
            self.spare_rows = rows;
            return None;
        }
        Some(Plan { rows })
    }

    fn admit(&mut self) {
        for place in 0..self.places.len() {
            if self.places[place].is_none()
                && let Some(sequence) = self.waiting.pop_front()
            {
                self.places[place] = Some(sequence);
                self.running.push(place as u32);
            }
        }
    }

    /// At most `most` of the tokens that a sequence has to run; its block table grows to hold them.
    fn row(&mut self, place: u32, most: usize, now: Instant) -> Row {
        let (start, len) = (self.at(place).computed, self.at(place).pending().min(most));
        let blocks = self.blocks_for(start + len);
        let sequence = self.places[place as usize].as_mut().expect("a running sequence has its place");
        sequence.started.get_or_insert(now);
        self.pool.resize(&mut sequence.blocks, blocks);
        let wants_logits = start + len == sequence.tokens.len();
        Row { place, start: start as u32, len: len as u32, wants_logits }
    }

    /// Lays the plan's rows out as the flat arrays that a backend reads.
    pub fn fill(&self, plan: &Plan, batch: &mut Batch) {
        batch.clear();
        for row in &plan.rows {
            let sequence = self.at(row.place);
            let tokens = &sequence.tokens[row.start as usize..(row.start + row.len) as usize];
            let first = batch.push_span(tokens, row.start, &sequence.blocks, row.place);
            if row.wants_logits {
                batch.want_logits(first + row.len - 1);
            }
        }
    }

    /// What is to be chosen for the plan's rows that want logits, in their order.
    pub fn sample_rows(&self, plan: &Plan) -> Vec<SampleRow<'_>> {
        let wanted = plan.rows.iter().filter(|row| row.wants_logits).enumerate();
        let sample_row = |(logits, row): (usize, &Row)| {
            let sequence = self.at(row.place);
            SampleRow {
                logits,
                sampling: &sequence.sampling,
                prompt: sequence.prompt(),
                output: sequence.output(),
                position: sequence.tokens.len(),
                logprobs: sequence.logprobs,
            }
        };
        wanted.map(sample_row).collect()
    }

    /// Takes in a step that ran; `sampled` is what came of every row that wanted logits. A request whose logits were no
    /// numbers is over.
    pub fn commit(&mut self, plan: Plan, sampled: &[Sampled], now: Instant, events: &mut Vec<Event>) {
        let mut sampled = sampled.iter();
        for row in &plan.rows {
            let sequence =
                self.places[row.place as usize].as_mut().expect("a planned sequence has its place");
            sequence.computed = (row.start + row.len) as usize;
            if !row.wants_logits {
                continue;
            }
            let sampled = sampled.next().expect("something came of every row that wanted logits");
            let Some(token) = sampled.token else {
                events.push(self.end(row.place, FinishReason::Failed, false, now));
                continue;
            };
            let (id, index) = (sequence.id, sequence.output().len());
            let finish = sequence.accept(token, now);
            if !matches!(finish, Some(FinishReason::Stop(_))) {
                let logprobs = TokenLogprobs::of(sampled);
                events.push(Event::Token { id, token, index, logprobs });
            }
            if let Some(reason) = finish {
                let hold = sequence.hold;
                events.push(self.end(row.place, reason, hold, now));
            }
        }
        self.spare_rows = plan.rows;
        self.audit();
    }

    /// Ends the requests of a step that failed: their state is not to be trusted.
    pub fn abandon(&mut self, plan: Plan, now: Instant, events: &mut Vec<Event>) {
        for row in &plan.rows {
            events.push(self.end(row.place, FinishReason::Failed, false, now));
        }
        self.spare_rows = plan.rows;
        self.audit();
    }

    /// Ends a request that waits or runs, or lets a held one go, with everything it has; the event is the end
    /// of a request that had none yet.
    pub fn cancel(&mut self, id: RequestId, now: Instant) -> Option<Event> {
        if let Some(i) = self.waiting.iter().position(|s| s.id == id) {
            let stats = self.waiting.remove(i)?.stats(now);
            return Some(Event::Finished { id, reason: FinishReason::Cancelled, stats });
        }
        let place = self.place_of(id)?;
        let was_held = self.at(place).is_held;
        let event = self.end(place, FinishReason::Cancelled, false, now);
        (!was_held).then_some(event)
    }

    /// Ends a running request as if it were finished: it is held if it asked for that.
    pub fn interrupt(&mut self, id: RequestId, now: Instant) -> Option<Event> {
        match self.place_of(id) {
            Some(place) if self.at(place).is_held => None,
            Some(place) => Some(self.end(place, FinishReason::Cancelled, self.at(place).hold, now)),
            None => self.cancel(id, now),
        }
    }

    fn end(&mut self, place: u32, reason: FinishReason, hold: bool, now: Instant) -> Event {
        self.running.retain(|&p| p != place);
        let mut sequence = self.places[place as usize].take().expect("a sequence that ends has its place");
        let event = Event::Finished { id: sequence.id, reason, stats: sequence.stats(now) };
        if hold {
            sequence.is_held = true;
            self.places[place as usize] = Some(sequence);
        } else {
            self.pool.resize(&mut sequence.blocks, 0);
        }
        self.audit();
        event
    }

    pub fn at(&self, place: u32) -> &Sequence {
        self.places[place as usize].as_ref().expect("the place is taken")
    }

    fn place_of(&self, id: RequestId) -> Option<u32> {
        self.places.iter().position(|p| p.as_ref().is_some_and(|s| s.id == id)).map(|p| p as u32)
    }

    fn blocks_for(&self, tokens: usize) -> usize {
        if self.has_kv { tokens.div_ceil(BLOCK) } else { 0 }
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Sequences that wait to begin and those that run.
    pub fn load(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    pub fn books(&self) -> Books {
        let used = self.places.iter().flatten().map(|s| s.blocks.len()).sum();
        Books { free: self.pool.free(), used, total: self.pool.total() }
    }

    fn audit(&self) {
        debug_assert!(self.books().balance(), "the books do not balance: {:?}", self.books());
    }
}
