use std::ops::Range;

use super::Attention;
use crate::batch::BLOCK;
use crate::cpu::{CpuOp, Ctx, Isa, Kernel, KvPool, Lane, Packer, Prepared, WIDTH, exp, tanh};
use crate::program::KvLayer;

// A block's scores are one vector.
const _: () = assert!(BLOCK == WIDTH);

pub(crate) fn prepare(op: &Attention, packer: &mut Packer) -> Prepared {
    let KvLayer { kv_heads, head_dim } = op.layer(packer.program);
    // One block of keys or values; per head of a group the block's scores, the largest score so far and the sum.
    packer.need(|s| &mut s.work, &[head_dim + op.heads / kv_heads, BLOCK + 2]);
    Ok(Box::new(op.clone()))
}

impl CpuOp for Attention {
    fn stages(&self, _cx: &Ctx) -> usize {
        1
    }

    /// An item is one KV head of one row, with all Q heads that share it.
    fn run(&self, _stage: usize, cx: &Ctx, lane: &mut Lane) {
        let KvLayer { kv_heads, head_dim } = self.layer(cx.program);
        let group = self.heads / kv_heads;
        // SAFETY: the op writes neither the queries nor the cache.
        let queries = unsafe { cx.rows(self.qkv) };
        for item in lane.every_nth(cx.batch.rows() * kv_heads) {
            let (row, kv_head) = (item / kv_heads, item % kv_heads);
            let columns = kv_head * group * head_dim..(kv_head + 1) * group * head_dim;
            // SAFETY: each head of a row is one lane's.
            let out = unsafe { cx.columns(self.out, row, columns.clone()) };
            cx.level.run(Heads {
                op: self,
                cx,
                row,
                kv_head,
                head_dim,
                q: &queries.row(row)[columns],
                sinks: self.sinks.map(|s| &cx.vector(s)[kv_head * group..(kv_head + 1) * group]),
                work: lane.work,
                out,
            });
        }
    }
}

/// The Q heads of one row that share a KV head.
struct Heads<'a> {
    op: &'a Attention,
    cx: &'a Ctx<'a>,
    row: usize,
    kv_head: usize,
    head_dim: usize,
    q: &'a [f32],
    sinks: Option<&'a [f32]>,
    work: &'a mut [f32],
    out: &'a mut [f32],
}

impl Kernel for Heads<'_> {
    type Out = ();

    /// Block by block from the first that is seen on, which depends on the row's position alone.
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (dim, group) = (self.head_dim, self.q.len() / self.head_dim);
        let (block, rest) = self.work.split_at_mut(BLOCK * dim);
        let (scores, rest) = rest.split_at_mut(BLOCK * group);
        let (maxima, rest) = rest.split_at_mut(group);
        let (scores, sums) = (scores.as_chunks_mut::<BLOCK>().0, &mut rest[..group]);
        // A sink is a score that is there before all others.
        match self.sinks {
            Some(sinks) => maxima.copy_from_slice(sinks),
            None => maxima.fill(f32::NEG_INFINITY),
        }
        sums.fill(if self.sinks.is_some() { 1.0 } else { 0.0 });
        self.out.fill(0.0);
        let span = self.cx.batch.span_of(self.row);
        let position = self.cx.batch.positions()[self.row] as usize;
        let (keys, values) =
            (&self.cx.memory.keys[self.op.kv.0 as usize], &self.cx.memory.values[self.op.kv.0 as usize]);
        let mut from = self.op.first_seen(position);
        while from <= position {
            let seen = from % BLOCK..(position + 1 - from / BLOCK * BLOCK).min(BLOCK);
            let at = self.cx.kv_at(self.op.kv, span, from, self.kv_head);
            let stored = at..at + seen.len() * dim;
            let k = load_block(isa, keys, stored.clone(), block);
            for (head, q) in self.q.chunks_exact(dim).enumerate() {
                let weights = &mut scores[head];
                score(isa, self.op, q, k, seen.clone(), weights);
                let rescale = soften(isa, weights, &mut maxima[head], &mut sums[head]);
                self.out[head * dim..][..dim].iter_mut().for_each(|v| *v *= rescale);
            }
            let v = load_block(isa, values, stored, block);
            for (scores, out) in scores.iter().zip(self.out.chunks_exact_mut(dim)) {
                add_values(isa, scores, v, seen.clone(), out);
            }
            from = (from / BLOCK + 1) * BLOCK;
        }
        for (sum, out) in sums.iter().zip(self.out.chunks_exact_mut(dim)) {
            let scale = 1.0 / *sum;
            out.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

/// Elements of the cache as f32, in `buffer` if they are not stored so.
#[inline(always)]
fn load_block<'b, I: Isa>(isa: I, pool: &'b KvPool, at: Range<usize>, buffer: &'b mut [f32]) -> &'b [f32] {
    match pool {
        // SAFETY: no stage that reads the cache writes it.
        KvPool::F32(pool) => unsafe { pool.slice(at) },
        KvPool::F16(pool) => {
            // SAFETY: as above.
            let (whole, rest) = unsafe { pool.slice(at.clone()) }.as_chunks::<WIDTH>();
            for (values, halves) in buffer.as_chunks_mut().0.iter_mut().zip(whole) {
                isa.store(isa.halves_to_floats(halves), values);
            }
            for (value, &half) in buffer[whole.len() * WIDTH..].iter_mut().zip(rest) {
                *value = isa.half_to_float(half);
            }
            &buffer[..at.len()]
        }
    }
}

/// The scores of the positions `seen` of a block, whose keys begin with the first of them; the others score nothing.
#[inline(always)]
fn score<I: Isa>(
    isa: I,
    op: &Attention,
    q: &[f32],
    k: &[f32],
    seen: Range<usize>,
    scores: &mut [f32; BLOCK],
) {
    *scores = [f32::NEG_INFINITY; BLOCK];
    for (score, k) in scores[seen].iter_mut().zip(k.chunks_exact(q.len())) {
        *score = isa.dot(q, k) * op.scale;
    }
    if let Some(cap) = op.soft_cap {
        scores.iter_mut().filter(|s| **s != f32::NEG_INFINITY).for_each(|s| *s = cap * tanh(*s / cap));
    }
}

/// Makes weights of a block's scores, relative to the largest score so far; returns by what everything summed up
/// before has to be multiplied.
#[inline(always)]
fn soften<I: Isa>(isa: I, scores: &mut [f32; BLOCK], max: &mut f32, sum: &mut f32) -> f32 {
    let largest = larger(*max, largest_of(*scores));
    let rescale = exp(*max - largest);
    scores.iter_mut().for_each(|score| *score = exp(*score - largest));
    *max = largest;
    *sum = *sum * rescale + isa.sum(isa.load(scores));
    rescale
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// In halves, so that it takes four steps of vector code.
#[inline(always)]
fn largest_of(scores: [f32; BLOCK]) -> f32 {
    let mut scores = scores;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            scores[i] = larger(scores[i], scores[i + half]);
        }
    }
    scores[0]
}

/// Adds the values of the positions `seen`, in their order, times their weights.
#[inline(always)]
fn add_values<I: Isa>(isa: I, weights: &[f32; BLOCK], v: &[f32], seen: Range<usize>, out: &mut [f32]) {
    for at in (0..out.len()).step_by(WIDTH) {
        let mut sums = isa.load_at(out, at);
        for (&weight, v) in weights[seen.clone()].iter().zip(v.chunks_exact(out.len())) {
            sums = isa.fma(isa.splat(weight), isa.load_at(v, at), sums);
        }
        isa.store_at(sums, out, at);
    }
}
