//! What the queries of a unit see of one part of the context: an online softmax, step by step.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::micro::{BLOCKS, add_values, score};
use super::state::{self, LARGEST, SUM, VALUES, larger};
use super::{Attention, PART, STEP, Sizes, Unit};
use crate::batch::BLOCK;
use crate::cpu::{Cells, Clock, Ctx, Isa, KvPool, Part, Shared, Stored, WIDTH, tanh};

/// As many queries use the cache as it is stored; for more it is made f32 first.
const DIRECT: usize = 8;

pub(super) struct PartOf<'a> {
    pub op: &'a Attention,
    pub sizes: Sizes,
    pub cx: &'a Ctx<'a>,
    pub unit: &'a Unit<'a>,
    /// Which part of the context it is.
    pub number: usize,
    /// Scaled; with a soft cap by the op's scale alone, else so that the scores are powers of two.
    pub queries: &'a [f32],
    pub scores: &'a mut [[f32; STEP]],
    /// A step's keys or values as f32.
    pub floats: &'a mut [f32],
    /// One for each query.
    pub states: &'a mut [f32],
    pub clock: &'a mut Clock,
}

/// The blocks of a step of a layer's keys or values that lie in `blocks`; the others are empty.
fn stored<'a, E: Stored>(
    of: &PartOf<'a>,
    pool: &KvPool,
    cells: &'a Shared<E>,
    from: usize,
    blocks: Range<usize>,
) -> [&'a [E]; BLOCKS] {
    let mut stored: [&[E]; BLOCKS] = [&[]; BLOCKS];
    for block in blocks {
        let at = pool.block_at(of.cx.block_of(of.unit.span, from + block * BLOCK), of.unit.kv_head);
        // SAFETY: no stage that reads the cache writes it.
        stored[block] = unsafe { cells.slice(at..at + pool.of_block()) };
    }
    stored
}

/// Blocks as f32, in `buffer`.
#[inline(always)]
fn converted<'b, I: Isa, E: Stored>(
    isa: I,
    stored: &[&[E]; BLOCKS],
    blocks: Range<usize>,
    buffer: &'b mut [f32],
) -> [&'b [f32]; BLOCKS] {
    let mut converted: [&[f32]; BLOCKS] = [&[]; BLOCKS];
    let mut rest = buffer;
    for block in blocks {
        let (floats, others) = std::mem::take(&mut rest).split_at_mut(stored[block].len());
        rest = others;
        let vectors = floats.as_chunks_mut::<WIDTH>().0;
        for (vector, stored) in vectors.iter_mut().zip(stored[block].as_chunks::<WIDTH>().0) {
            isa.store(E::load(isa, stored), vector);
        }
        converted[block] = floats;
    }
    converted
}

impl PartOf<'_> {
    #[inline(always)]
    pub fn run<I: Isa>(mut self, isa: I) {
        let layer = self.op.kv.0 as usize;
        let (keys, values) = (&self.cx.memory.keys[layer], &self.cx.memory.values[layer]);
        let stride = state::floats(self.sizes.padded);
        let seeing = self.unit.queries_seeing(self.number * PART..(self.number + 1) * PART);
        for state in self.states[seeing.start * stride..seeing.end * stride].chunks_exact_mut(stride) {
            state::begin(state, None);
        }
        for from in (self.number * PART..(self.number + 1) * PART).step_by(STEP) {
            let rows = self.unit.rows_seeing(from..from + STEP);
            if rows.is_empty() {
                continue;
            }
            match (keys.cells(), values.cells()) {
                (Cells::F32(k), Cells::F32(v)) => self.step(isa, from, rows, (keys, k), (values, v)),
                (Cells::F16(k), Cells::F16(v)) => self.step(isa, from, rows, (keys, k), (values, v)),
                _ => unreachable!("keys and values are stored alike"),
            }
        }
    }

    #[inline(always)]
    fn step<I: Isa, E: Stored>(
        &mut self,
        isa: I,
        from: usize,
        rows: Range<usize>,
        keys: (&KvPool, &Shared<E>),
        values: (&KvPool, &Shared<E>),
    ) {
        let (unit, Sizes { group, dim, padded, .. }) = (self.unit, self.sizes);
        let stride = state::floats(padded);
        let seen = unit.seen(rows.start, from).start..unit.seen(rows.end - 1, from).end;
        let blocks = seen.start / BLOCK..seen.end.div_ceil(BLOCK);
        let tile = rows.start * group..rows.end * group;
        let queries = &self.queries[tile.start * dim..tile.end * dim];
        let is_direct = E::IS_FLOAT || tile.len() <= DIRECT;

        let stored_keys = stored(self, keys.0, keys.1, from, blocks.clone());
        let stored_values = stored(self, values.0, values.1, from, blocks.clone());
        let scores = &mut self.scores[tile.clone()];
        if is_direct {
            score(isa, queries, dim, [&stored_keys, &stored_values], blocks.clone(), scores);
        } else {
            let floats = converted(isa, &stored_keys, blocks.clone(), self.floats);
            score(isa, queries, dim, [&floats, &floats], blocks.clone(), scores);
        }
        self.clock.lap(Part::Scores);

        for row in rows.clone() {
            let seen = unit.seen(row, from);
            for query in row * group..(row + 1) * group {
                let state = &mut self.states[query * stride..(query + 1) * stride];
                soften(isa, &mut self.scores[query], seen.clone(), self.op.soft_cap, state);
            }
        }
        self.clock.lap(Part::Softmax);

        let blocks_left = (unit.position(unit.rows - 1) / BLOCK + 1).saturating_sub((from + STEP) / BLOCK);
        let next_keys = stored(self, keys.0, keys.1, from + STEP, 0..blocks_left.min(BLOCKS));
        // Rows that see everything are one group; else each has its own bounds.
        let at_once = if unit.all_see(&rows, from) { rows.len() } else { 1 };
        let floats = match is_direct {
            true => [&[][..]; BLOCKS],
            false => converted(isa, &stored_values, blocks, self.floats),
        };
        for row in rows.clone().step_by(at_once) {
            let seen = unit.seen(row, from);
            let queries = row * group..(row + at_once) * group;
            let weights = &self.scores[queries.clone()];
            let states = &mut self.states[queries.start * stride..queries.end * stride];
            if is_direct {
                add_values(isa, weights, [&stored_values, &next_keys], seen, padded, states);
            } else {
                add_values(isa, weights, [&floats, &floats], seen, padded, states);
            }
        }
        self.clock.lap(Part::Values);
    }
}

/// The smaller of a score and one of these is the score or nothing: nothing before the second vector and after the
/// third.
const BOUNDS: [f32; 4 * WIDTH] = {
    let mut bounds = [f32::INFINITY; 4 * WIDTH];
    let mut i = 0;
    while i < WIDTH {
        bounds[i] = f32::NEG_INFINITY;
        bounds[3 * WIDTH + i] = f32::NEG_INFINITY;
        i += 1;
    }
    bounds
};

/// Makes weights of a step's scores, relative to the largest score so far, and brings the state to it.
#[inline(always)]
fn soften<I: Isa>(isa: I, scores: &mut [f32; STEP], seen: Range<usize>, cap: Option<f32>, state: &mut [f32]) {
    if let Some(cap) = cap {
        scores.iter_mut().for_each(|score| *score = cap * tanh(*score / cap) * LOG2_E);
    }
    let vectors = scores.as_chunks_mut::<WIDTH>().0;
    if seen.len() < STEP {
        // With whole vectors, because a load soon after narrower stores waits for them.
        for (i, vector) in vectors.iter_mut().enumerate() {
            let [start, end] = [seen.start, seen.end].map(|bound| bound.saturating_sub(i * WIDTH).min(WIDTH));
            let after_start = isa.load_at(&BOUNDS, WIDTH - start);
            let before_end = isa.load_at(&BOUNDS, 3 * WIDTH - end);
            isa.store(isa.min(isa.min(isa.load(vector), after_start), before_end), vector);
        }
    }
    let mut largest = isa.load(&vectors[0]);
    for vector in &vectors[1..] {
        largest = isa.max(largest, isa.load(vector));
    }
    let before = state[LARGEST];
    let largest = larger(before, isa.largest(largest));
    let below = isa.splat(-largest);
    let mut sums = isa.zero();
    for vector in vectors {
        let weights = isa.exp2(isa.add(isa.load(vector), below));
        isa.store(weights, vector);
        sums = isa.add(sums, weights);
    }
    let sum = isa.sum(sums);
    if largest == before {
        state[SUM] += sum;
        return;
    }
    let (rescale, scalar) = state::power(isa, before - largest);
    state[LARGEST] = largest;
    state[SUM] = state[SUM] * scalar + sum;
    for values in state[VALUES..].as_chunks_mut::<WIDTH>().0 {
        isa.store(isa.mul(isa.load(values), rescale), values);
    }
}
