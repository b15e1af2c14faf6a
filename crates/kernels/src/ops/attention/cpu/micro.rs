//! Products of a few queries with keys and of a few weights with values, in registers.
//!
//! A score is a sum over the elements of a head in their order, a weighted sum of values one over the positions in
//! theirs: how many queries, blocks or columns are done at a time changes no bit.
//!
//! What is read as it is stored comes from far away: on the way the part of the cache that is read next is asked for.

use std::ops::Range;

use super::{STEP, state};
use crate::batch::BLOCK;
use crate::cpu::{Isa, Stored, WIDTH, prefetch};

/// Blocks of a step.
pub(super) const BLOCKS: usize = STEP / BLOCK;
/// Vectors of columns of values that are summed up at a time, where there are registers for them.
const COLUMNS: usize = 4;

/// Calls a function with the largest number of queries at a time that it is made for.
macro_rules! few_at_a_time {
    ($left:expr, $few:ident::<$I:ty, $E:ty>($($argument:expr),*)) => {
        match $left {
            1 => $few::<$I, $E, 1>($($argument),*),
            2 => $few::<$I, $E, 2>($($argument),*),
            3 => $few::<$I, $E, 3>($($argument),*),
            4 | 5 => $few::<$I, $E, 4>($($argument),*),
            _ => $few::<$I, $E, 6>($($argument),*),
        }
    };
}

/// The scores of each query for the positions of these blocks of a step.
#[inline(always)]
pub(super) fn score<I: Isa, E: Stored>(
    isa: I,
    queries: &[f32],
    dim: usize,
    [keys, ahead]: [&[&[E]; BLOCKS]; 2],
    blocks: Range<usize>,
    scores: &mut [[f32; STEP]],
) {
    let mut at = 0;
    while at < scores.len() {
        let (queries, scores) = (&queries[at * dim..], &mut scores[at..]);
        at += few_at_a_time!(
            scores.len(),
            score_few::<I, E>(isa, queries, dim, [keys, ahead], blocks.clone(), scores)
        );
    }
}

#[inline(always)]
fn score_few<I: Isa, E: Stored, const R: usize>(
    isa: I,
    queries: &[f32],
    dim: usize,
    [keys, ahead]: [&[&[E]; BLOCKS]; 2],
    blocks: Range<usize>,
    scores: &mut [[f32; STEP]],
) -> usize {
    if I::MANY_REGISTERS && blocks.len() == BLOCKS {
        score_blocks::<I, E, R, BLOCKS>(isa, queries, dim, [keys, ahead], 0, scores);
    } else {
        for block in blocks {
            score_blocks::<I, E, R, 1>(isa, queries, dim, [keys, ahead], block, scores);
        }
    }
    R
}

#[inline(always)]
fn score_blocks<I: Isa, E: Stored, const R: usize, const B: usize>(
    isa: I,
    queries: &[f32],
    dim: usize,
    [keys, ahead]: [&[&[E]; BLOCKS]; 2],
    first: usize,
    scores: &mut [[f32; STEP]],
) {
    let mut blocks: [&[[E; WIDTH]]; B] = [&[]; B];
    for b in 0..B {
        blocks[b] = &keys[first + b].as_chunks().0[..dim];
    }
    let mut rows: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        rows[r] = &queries[r * dim..(r + 1) * dim];
    }
    let mut sums = [[isa.zero(); B]; R];
    for d in 0..dim {
        let mut k = [isa.zero(); B];
        for b in 0..B {
            k[b] = E::load(isa, &blocks[b][d]);
            if !E::IS_FLOAT {
                prefetch(ahead[first + b].as_ptr().wrapping_add(d * WIDTH));
            }
        }
        for r in 0..R {
            let q = isa.splat(rows[r][d]);
            for b in 0..B {
                sums[r][b] = isa.fma(q, k[b], sums[r][b]);
            }
        }
    }
    for r in 0..R {
        let scores = scores[r].as_chunks_mut::<WIDTH>().0;
        for b in 0..B {
            isa.store(sums[r][b], &mut scores[first + b]);
        }
    }
}

/// Adds the values of the positions `seen` of a step, times their weights, to each query's state.
#[inline(always)]
pub(super) fn add_values<I: Isa, E: Stored>(
    isa: I,
    weights: &[[f32; STEP]],
    [values, ahead]: [&[&[E]; BLOCKS]; 2],
    seen: Range<usize>,
    padded: usize,
    states: &mut [f32],
) {
    let mut at = 0;
    while at < weights.len() {
        let (weights, states) = (&weights[at..], &mut states[at * state::floats(padded)..]);
        let left = weights.len();
        at += few_at_a_time!(
            left,
            add_few::<I, E>(isa, weights, [values, ahead], seen.clone(), padded, states)
        );
    }
}

#[inline(always)]
fn add_few<I: Isa, E: Stored, const R: usize>(
    isa: I,
    weights: &[[f32; STEP]],
    [values, ahead]: [&[&[E]; BLOCKS]; 2],
    seen: Range<usize>,
    padded: usize,
    states: &mut [f32],
) -> usize {
    let vectors = padded / WIDTH;
    let mut column = 0;
    while I::MANY_REGISTERS && column + COLUMNS <= vectors {
        add_columns::<I, E, R, COLUMNS>(isa, weights, [values, ahead], seen.clone(), column, vectors, states);
        column += COLUMNS;
    }
    for column in column..vectors {
        add_columns::<I, E, R, 1>(isa, weights, [values, ahead], seen.clone(), column, vectors, states);
    }
    R
}

#[inline(always)]
fn add_columns<I: Isa, E: Stored, const R: usize, const C: usize>(
    isa: I,
    weights: &[[f32; STEP]],
    [values, ahead]: [&[&[E]; BLOCKS]; 2],
    seen: Range<usize>,
    column: usize,
    vectors: usize,
    states: &mut [f32],
) {
    let (states, weights) = (states.as_chunks_mut::<WIDTH>().0, &weights[..R]);
    let first = state::VALUES / WIDTH + column;
    let stride = state::floats(vectors * WIDTH) / WIDTH;
    let mut sums = [[isa.zero(); C]; R];
    for r in 0..R {
        for c in 0..C {
            sums[r][c] = isa.load(&states[r * stride + first + c]);
        }
    }
    for (block, (values, ahead)) in values.iter().zip(ahead).enumerate() {
        let base = block * BLOCK;
        let (from, to) = (seen.start.max(base), seen.end.min(base + BLOCK));
        if from >= to {
            continue;
        }
        let rows = &values.as_chunks::<WIDTH>().0[(from - base) * vectors..(to - base) * vectors];
        for (position, row) in (from..to).zip(rows.chunks_exact(vectors)) {
            let row = &row[column..column + C];
            if !E::IS_FLOAT {
                let ahead = ahead.as_ptr().wrapping_add(((position - base) * vectors + column) * WIDTH);
                for line in 0..C.div_ceil(2) {
                    prefetch(ahead.wrapping_add(line * 2 * WIDTH));
                }
            }
            let mut v = [isa.zero(); C];
            for c in 0..C {
                v[c] = E::load(isa, &row[c]);
            }
            for r in 0..R {
                let weight = isa.splat(weights[r][position]);
                for c in 0..C {
                    sums[r][c] = isa.fma(weight, v[c], sums[r][c]);
                }
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            isa.store(sums[r][c], &mut states[r * stride + first + c]);
        }
    }
}
