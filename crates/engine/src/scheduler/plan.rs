//! What the next step is to run.

use std::time::Instant;

use exotherm_kernels::{BLOCK, Batch};

use super::Scheduler;
use crate::snapshots::Worth;

/// The unit of work: tokens `start..start + len` of a sequence. A piece of a prompt and a decoded token are
/// the same thing; the sequence whose last token is in it gets a new one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// The sequence's place, which is its slot of recurrent state too.
    pub place: u32,
    pub start: u32,
    pub len: u32,
    /// So many of its last tokens want logits.
    pub logits: u32,
}

/// A token of a sequence, and which of the step's rows of logits tells of it: one that stands at its position already is
/// told how likely it was, one that does not is chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub logits: u32,
    pub place: u32,
    pub position: u32,
}

/// State that is copied outside of the program.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StateCopy {
    Block { from: u32, to: u32 },
    Slot { from: u32, to: u32 },
}

/// The state of a place after the step, at position `end`, becomes a snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Save {
    pub place: u32,
    pub end: usize,
    pub index: u32,
    pub worth: Worth,
}

/// The sequence in place `to` goes on where that of `from` is after the step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fork {
    pub from: u32,
    pub to: u32,
}

/// One step's work. It cannot be copied and `commit` consumes it, so no step is taken in twice.
#[derive(Default)]
pub(crate) struct Plan {
    pub(super) rows: Vec<Row>,
    pub(super) samples: Vec<Sample>,
    pub(super) before: Vec<StateCopy>,
    pub(super) after: Vec<StateCopy>,
    pub(super) saves: Vec<Save>,
    pub(super) forks: Vec<Fork>,
    /// Rows of logits that are wanted.
    logits: u32,
    /// Rows of logits that may be wanted beside one of everybody who runs or may begin to.
    spare_logits: usize,
}

impl Plan {
    /// In the order of the batch.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Several of them may be of the same logits.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Copies that must be made before the step runs, one after another.
    pub fn before(&self) -> &[StateCopy] {
        &self.before
    }

    /// Copies that must be made after it.
    pub fn after(&self) -> &[StateCopy] {
        &self.after
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.samples.clear();
        self.before.clear();
        self.after.clear();
        self.saves.clear();
        self.forks.clear();
        self.logits = 0;
    }
}

impl Scheduler {
    /// Says what is to run: one token of every sequence that decodes, and of prompts as many as the chunk has rows beside
    /// them, but one at least, so that they cannot starve. Then waiting requests are let in, as far as there are places,
    /// blocks and rows for them. Every sequence that is touched has a row in the plan or is forked by it.
    pub fn plan(&mut self, now: Instant) -> Option<Plan> {
        self.is_moving = true;
        self.counts.steps += 1;
        let mut plan = std::mem::take(&mut self.spare);
        plan.clear();
        let decodes = self.running.iter().filter(|&&place| self.at(place).pending() == 1).count();
        let mut left = self.sizes.chunk.saturating_sub(decodes).max(1);
        let preemptions = self.counts.preemptions;
        plan.spare_logits = self.spare_logits();
        self.plan_running(&mut plan, &mut left, now);
        // Who has just made room for others would only take it back.
        if self.counts.preemptions == preemptions {
            self.admit(&mut plan, &mut left, now);
        }
        self.is_moving = false;
        if plan.rows.is_empty() {
            self.spare = plan;
            return None;
        }
        Some(plan)
    }

    /// Rows of logits that are left when everybody who runs has one, and everybody who may be let in.
    fn spare_logits(&self) -> usize {
        let next = self.waiting.iter().filter(|sequence| sequence.leader.is_none()).count();
        self.sizes.logit_rows - (self.running.len() + next).min(self.places.len())
    }

    /// Gives rows to the sequences that run, in their order. Who finds no block gets those of the last, which has no row
    /// yet; so the first of all always gets on, at worst alone.
    fn plan_running(&mut self, plan: &mut Plan, left: &mut usize, now: Instant) {
        let mut i = 0;
        while let Some(&place) = self.running.get(i) {
            let is_decode = self.at(place).pending() == 1;
            let most = if is_decode { 1 } else { self.next_rows(place, *left, plan) };
            let len = self.fitting(place, most);
            if len > 0 {
                self.add_row(place, len, plan, now);
                *left -= if is_decode { 0 } else { len };
            }
            if len > 0 || most == 0 {
                i += 1;
            } else {
                let last = self.running[self.running.len() - 1];
                self.preempt(last);
            }
        }
    }

    /// Of the next `most` tokens that a sequence has to run, those that there are blocks for.
    pub(super) fn fitting(&self, place: u32, most: usize) -> usize {
        if !self.sizes.has_kv {
            return most;
        }
        let sequence = self.at(place);
        let Some(takeable) = self.pool.available().checked_sub(usize::from(self.shares_next(place))) else {
            return 0;
        };
        most.min((sequence.blocks.len() + takeable) * BLOCK - sequence.computed)
    }

    /// Whether the block that a sequence writes to next, already begun, is another's, too.
    pub(super) fn shares_next(&self, place: u32) -> bool {
        let sequence = self.at(place);
        let next = sequence.blocks.get(sequence.computed / BLOCK);
        next.is_some_and(|&block| self.pool.holders(block) > 1)
    }

    /// Of the next `most` tokens of a sequence, those that can be run together, as far as it is not about blocks.
    pub(super) fn next_rows(&self, place: u32, most: usize, plan: &Plan) -> usize {
        let sequence = self.at(place);
        let unwanted = sequence.wanted_from().saturating_sub(sequence.computed);
        self.until_cut(place, most).min(unwanted + 1 + plan.spare_logits)
    }

    /// Of the next `most` tokens of a sequence, those up to where a snapshot is to be made.
    fn until_cut(&self, place: u32, most: usize) -> usize {
        let sequence = self.at(place);
        let (start, end) = (sequence.computed, sequence.tokens.len());
        let most = most.min(end - start);
        if self.sizes.snapshots == 0 {
            return most;
        }
        let stride = self.sizes.snapshot_stride;
        let next = start.checked_div(stride).map_or(end, |strides| (strides + 1) * stride);
        let ends = [Some(last_boundary(end)), self.at(place).common, self.near_end(start, end)];
        let cut = ends.into_iter().flatten().filter(|&cut| cut > start).fold(next, usize::min);
        most.min(cut - start)
    }

    /// Where the next state near the end of so many tokens is to be kept, if there is a place to spare. The last stride is
    /// divided, and so is what another prompt that differs only at its end has to run.
    fn near_end(&self, start: usize, tokens: usize) -> Option<usize> {
        let stride = self.sizes.snapshot_stride;
        let part = Some(stride / STRIDE_PARTS).filter(|part| *part > 0 && part.is_multiple_of(BLOCK))?;
        let first = tokens.saturating_sub(stride).max(start);
        self.snapshots.has_place_near_end().then_some((first / part + 1) * part)
    }

    /// Plans the next `len` tokens of a sequence; its block table grows to hold them.
    pub(super) fn add_row(&mut self, place: u32, len: usize, plan: &mut Plan, now: Instant) {
        self.own_next(place, plan);
        let (start, wanted_from) = (self.at(place).computed, self.at(place).wanted_from());
        let end = start + len;
        let blocks = self.blocks_for(end);
        let sequence = self.places[place as usize].as_mut().expect("a running sequence has its place");
        sequence.started.get_or_insert(now);
        while sequence.blocks.len() < blocks {
            sequence.blocks.push(self.pool.take().expect("no more was planned than fits"));
        }
        debug_assert!(
            sequence.blocks.iter().skip(start / BLOCK).all(|&block| self.pool.is_own(block)),
            "what is written is another's, too"
        );
        let wanted = wanted_from.max(start)..end;
        plan.rows.push(Row { place, start: start as u32, len: len as u32, logits: wanted.len() as u32 });
        self.plan_snapshot(place, end, plan);
        plan.spare_logits -= wanted.len().saturating_sub(1);
        for before in wanted {
            plan.samples.push(Sample { logits: plan.logits, place, position: before as u32 + 1 });
            plan.logits += 1;
        }
    }

    /// Gives a sequence its own copy of the block that it writes to next, if it shares it.
    fn own_next(&mut self, place: u32, plan: &mut Plan) {
        if !self.sizes.has_kv || !self.shares_next(place) {
            return;
        }
        let to = self.pool.take().expect("no more was planned than fits");
        let sequence = self.at_mut(place);
        let next = sequence.computed / BLOCK;
        let from = std::mem::replace(&mut sequence.blocks[next], to);
        self.pool.release(from);
        plan.before.push(StateCopy::Block { from, to });
    }

    /// Remembers the state at the end of the prompt's last whole block, at every stride, where it ceases to be
    /// that of an earlier prompt, near its end where there is a place to spare, and, as an answer goes on, the latest one:
    /// so the next turn of a chat finds what it continues.
    fn plan_snapshot(&mut self, place: u32, end: usize, plan: &mut Plan) {
        if self.sizes.snapshots == 0 || !end.is_multiple_of(BLOCK) {
            return;
        }
        let near_end = self.near_end(end - 1, self.at(place).tokens.len());
        let stride = self.sizes.snapshot_stride;
        let chain = self.chain;
        let sequence = self.places[place as usize].as_mut().expect("a running sequence has its place");
        let is_tail = end == sequence.tokens.len();
        let is_common = sequence.common == Some(end);
        let worth = if is_tail || is_common || end == last_boundary(sequence.tokens.len()) {
            Worth::End
        } else if end.is_multiple_of(stride) {
            Worth::Stride
        } else if near_end == Some(end) {
            Worth::NearEnd
        } else {
            return;
        };
        let seen = sequence.beginning(end / BLOCK - 1, chain);
        if let Some(same) = self.snapshots.find(&seen) {
            self.snapshots.touch(same, worth);
            return;
        }
        let own = sequence.tail.filter(|_| is_tail);
        if let Some(index) = self.snapshots.reserve(own) {
            plan.saves.push(Save { place, end, index, worth });
            plan.after.push(StateCopy::Slot { from: place, to: self.snapshots.slot(index) });
        }
    }

    /// Lays the plan's rows out as the flat arrays that a backend reads.
    pub fn fill(&self, plan: &Plan, batch: &mut Batch) {
        batch.clear();
        for row in &plan.rows {
            let sequence = self.at(row.place);
            let tokens = &sequence.tokens[row.start as usize..(row.start + row.len) as usize];
            let first = batch.push_span(tokens, row.start, &sequence.blocks, row.place);
            (row.len - row.logits..row.len).for_each(|i| batch.want_logits(first + i));
        }
    }
}

/// Parts of a prompt's last stride.
const STRIDE_PARTS: usize = 8;

/// The end of the last whole block of so many tokens that has a token after it.
fn last_boundary(tokens: usize) -> usize {
    (tokens - 1) / BLOCK * BLOCK
}
