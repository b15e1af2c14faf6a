//! Attention of the CPU backend.
//!
//! A context is cut into parts of [`PART`] positions, counted from position 0. What a query sees of a part is one
//! online softmax, over steps of [`STEP`] positions, and gives a largest score, a sum and a weighted sum of values;
//! the parts are merged in their order. So the order of all sums depends on a row's position alone, while the parts
//! of one row may be made by several lanes.
//!
//! A unit of work is one KV head for a tile of rows of one sequence, so that every read of the cache serves all
//! queries of the tile. A lane that makes all parts of a unit merges them itself; where a unit is cut between lanes,
//! its parts go to shared memory and are merged in a second stage.

mod micro;
mod part;
mod state;
mod units;

use std::ops::Range;

use super::Attention;
use crate::batch::BLOCK;
use crate::cpu::{Clock, CpuOp, Ctx, Isa, Kernel, Lane, Packer, Prepared, padded, share};
use crate::program::{KvLayer, Program};
use part::PartOf;
use units::{Sharing, Unit};

/// Positions whose softmax is made by itself.
const PART: usize = 256;
/// Positions whose scores are made at a time.
const STEP: usize = 64;
/// Queries that share a read of the cache, unless one row has more.
const TILE: usize = 96;
/// Floats of shared memory that a unit may be given even where one row of the longest context needs less.
const SLOT: usize = 1 << 17;

const _: () = assert!(PART.is_multiple_of(STEP) && STEP.is_multiple_of(BLOCK));

/// The sizes that all units have in common.
#[derive(Clone, Copy)]
struct Sizes {
    kv_heads: usize,
    /// Q heads that share a KV head.
    group: usize,
    dim: usize,
    /// `dim` in whole vectors.
    padded: usize,
    /// Rows of a tile.
    rows: usize,
}

impl Sizes {
    fn of(op: &Attention, program: &Program) -> Sizes {
        let KvLayer { kv_heads, head_dim } = op.layer(program);
        let group = op.heads / kv_heads;
        Sizes { kv_heads, group, dim: head_dim, padded: padded(head_dim), rows: (TILE / group).max(1) }
    }

    /// Floats of a lane's scratch: scores, a step of the cache as f32, the states of a part and of all parts so far,
    /// and the queries.
    fn scratch(&self) -> [usize; 5] {
        let queries = self.rows * self.group;
        let states = queries * state::floats(self.padded);
        [queries * STEP, STEP * self.padded, states, states, queries * self.dim]
    }
}

struct Prepare {
    op: Attention,
    sizes: Sizes,
    lanes: usize,
    /// Floats of shared memory for a unit that is cut between lanes.
    slot: usize,
}

pub(crate) fn prepare(op: &Attention, packer: &mut Packer) -> Prepared {
    let sizes = Sizes::of(op, packer.program);
    packer.need(|s| &mut s.work, &[sizes.scratch().iter().sum()]);
    let lanes = packer.lanes();
    let most_parts = packer.limits.blocks.div_ceil(PART / BLOCK);
    let slot = most_parts.saturating_mul(sizes.group * state::floats(sizes.padded)).max(SLOT);
    // A boundary between two lanes cuts at most one unit.
    packer.need(|s| &mut s.shared_work, &[lanes - 1, slot]);
    Ok(Box::new(Prepare { op: op.clone(), sizes, lanes, slot }))
}

impl CpuOp for Prepare {
    fn stages(&self, cx: &Ctx) -> usize {
        let ends = cx.batch.spans().iter().map(|span| (span.start + span.rows) as usize);
        // Only units of several parts are ever cut.
        if self.lanes > 1 && ends.max().unwrap_or(0) > PART { 2 } else { 1 }
    }

    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        let mut rest = &mut *lane.work;
        let [scores, floats, part, total, queries] = self.sizes.scratch().map(|n| {
            let (mine, others) = std::mem::take(&mut rest).split_at_mut(n);
            rest = others;
            mine
        });
        let mut scratch = Scratch {
            scores: scores.as_chunks_mut().0,
            floats,
            part,
            total,
            queries,
            clock: &mut lane.clock,
        };
        let (id, of) = (lane.id, lane.of);
        let sharing = Sharing::new(&self.op, cx.batch, self.sizes, self.lanes, self.slot);
        sharing.for_each(|unit| {
            let work = At { prepared: self, cx, unit, scratch: &mut scratch };
            let queries = share(unit.queries(), 1, id, of);
            match stage {
                0 => {
                    let parts = sharing.parts_of(id, unit);
                    if !parts.is_empty() {
                        cx.level.run(Parts(work, parts));
                    }
                }
                _ => {
                    if let (Some(slot), false) = (unit.slot, queries.is_empty()) {
                        cx.level.run(Merge(work, slot, queries));
                    }
                }
            }
        });
    }
}

/// A lane's memory.
struct Scratch<'a> {
    scores: &'a mut [[f32; STEP]],
    floats: &'a mut [f32],
    part: &'a mut [f32],
    total: &'a mut [f32],
    queries: &'a mut [f32],
    clock: &'a mut Clock,
}

/// A unit that a lane works at.
struct At<'a, 'b> {
    prepared: &'a Prepare,
    cx: &'a Ctx<'a>,
    unit: &'a Unit<'a>,
    scratch: &'a mut Scratch<'b>,
}

impl At<'_, '_> {
    /// Which Q head of a row a query of the unit is, and the row of the batch.
    fn head_and_row(&self, query: usize) -> (usize, usize) {
        let group = self.prepared.sizes.group;
        (self.unit.kv_head * group + query % group, self.unit.first_row + query / group)
    }

    /// Copies the queries, scaled.
    #[inline(always)]
    fn take_queries(&mut self) {
        let (op, dim) = (&self.prepared.op, self.prepared.sizes.dim);
        let scale = if op.soft_cap.is_some() { op.scale } else { op.scale * std::f32::consts::LOG2_E };
        // SAFETY: the op does not write the queries.
        let rows = unsafe { self.cx.rows(op.qkv) };
        for query in 0..self.unit.queries() {
            let (head, row) = self.head_and_row(query);
            let from = &rows.row(row)[head * dim..(head + 1) * dim];
            let to = &mut self.scratch.queries[query * dim..(query + 1) * dim];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
    }

    /// Begins the states of all parts together.
    #[inline(always)]
    fn begin(&mut self, queries: Range<usize>) {
        let stride = state::floats(self.prepared.sizes.padded);
        for query in queries {
            let sink = self.prepared.op.sinks.map(|sinks| self.cx.vector(sinks)[self.head_and_row(query).0]);
            state::begin(&mut self.scratch.total[query * stride..(query + 1) * stride], sink);
        }
    }

    /// Writes the results of these queries.
    #[inline(always)]
    fn write<I: Isa>(&mut self, isa: I, queries: Range<usize>) {
        let Sizes { dim, padded, .. } = self.prepared.sizes;
        let stride = state::floats(padded);
        for query in queries {
            let (head, row) = self.head_and_row(query);
            // SAFETY: each query of a unit is one lane's: the one that makes all its parts, or that merges them.
            let out = unsafe { self.cx.columns(self.prepared.op.out, row, head * dim..(head + 1) * dim) };
            state::finish(isa, &self.scratch.total[query * stride..(query + 1) * stride], out);
        }
    }

    /// Where the states of a part of a unit lie in shared memory.
    fn shared(&self, slot: usize, part: usize) -> Range<usize> {
        let floats = self.unit.queries() * state::floats(self.prepared.sizes.padded);
        let at = slot * self.prepared.slot + (part - self.unit.parts().start) * floats;
        at..at + floats
    }
}

/// These parts of a unit.
struct Parts<'a, 'b>(At<'a, 'b>, Range<usize>);

impl Kernel for Parts<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Parts(mut at, parts) = self;
        let (prepared, cx, unit) = (at.prepared, at.cx, at.unit);
        let sizes = prepared.sizes;
        let (n, stride) = (unit.queries(), state::floats(sizes.padded));
        at.take_queries();
        at.begin(0..n);
        for number in parts {
            let shared = unit.slot.map(|slot| at.shared(slot, number));
            let scratch = &mut *at.scratch;
            let states = match shared {
                // SAFETY: each part of a unit is one lane's.
                Some(range) => unsafe { cx.memory.work.slice_mut(range) },
                None => &mut *scratch.part,
            };
            let (queries, scores, floats) = (&*scratch.queries, &mut *scratch.scores, &mut *scratch.floats);
            let clock = &mut *scratch.clock;
            PartOf { op: &prepared.op, sizes, cx, unit, number, queries, scores, floats, states, clock }
                .run(isa);
            if unit.slot.is_none() {
                for query in unit.queries_seeing(number * PART..(number + 1) * PART) {
                    let range = query * stride..(query + 1) * stride;
                    state::merge(isa, &mut scratch.total[range.clone()], &scratch.part[range]);
                }
            }
        }
        if unit.slot.is_none() {
            at.write(isa, 0..n);
        }
    }
}

/// These queries of a unit whose parts were made by several lanes.
struct Merge<'a, 'b>(At<'a, 'b>, usize, Range<usize>);

impl Kernel for Merge<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Merge(mut at, slot, queries) = self;
        let stride = state::floats(at.prepared.sizes.padded);
        at.begin(queries.clone());
        for number in at.unit.parts() {
            // SAFETY: in this stage the parts are only read.
            let states = unsafe { at.cx.memory.work.slice(at.shared(slot, number)) };
            let seeing = at.unit.queries_seeing(number * PART..(number + 1) * PART);
            for query in queries.start.max(seeing.start)..queries.end.min(seeing.end) {
                let range = query * stride..(query + 1) * stride;
                state::merge(isa, &mut at.scratch.total[range.clone()], &states[range]);
            }
        }
        at.write(isa, queries);
    }
}
