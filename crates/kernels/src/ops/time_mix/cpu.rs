use super::{DECAY, TimeMix};
use crate::cpu::{CpuOp, Ctx, Isa, Kernel, Lane, Packer, Prepared, WIDTH, exp, mean_and_scale, sigmoid};
use crate::ops::NormKind;

pub(crate) fn prepare(op: &TimeMix, packer: &mut Packer) -> Prepared {
    let size = packer.program.buffer(op.out).width / op.heads;
    packer.need(|s| &mut s.work, &[Scratch::VECTORS, size]);
    Ok(Box::new(op.clone()))
}

impl CpuOp for TimeMix {
    fn stages(&self, _cx: &Ctx) -> usize {
        1
    }

    /// An item is one head of one span, whose rows follow one another.
    fn run(&self, _stage: usize, cx: &Ctx, lane: &mut Lane) {
        let size = cx.program.buffer(self.out).width / self.heads;
        for item in lane.items(cx.batch.spans().len() * self.heads) {
            let (span, head) = (&cx.batch.spans()[item / self.heads], item % self.heads);
            let matrix = head * size * size..(head + 1) * size * size;
            // SAFETY: this head of this span is this lane's, and every span of a batch has its own slot.
            let state = unsafe { cx.state(self.state, span, matrix) };
            if span.start == 0 {
                state.fill(0.0);
            }
            for row in span.row_range() {
                self.row(cx, row, head, size, state, lane.work);
            }
        }
    }
}

impl TimeMix {
    fn row(&self, cx: &Ctx, row: usize, head: usize, size: usize, state: &mut [f32], work: &mut [f32]) {
        let (width, at) = (size * self.heads, head * size..(head + 1) * size);
        // SAFETY: the op writes neither of its inputs.
        let (rkv, wagv) = unsafe { (cx.rows(self.rkv).row(row), cx.rows(self.wagv).row(row)) };
        // SAFETY: each head of a row is one lane's.
        let v_first = unsafe { cx.columns(self.v_first, row, at.clone()) };
        let scratch = Scratch::new(work, size);
        let v = &rkv[2 * width..][at.clone()];
        if self.is_first_layer {
            v_first.copy_from_slice(v);
            scratch.v.copy_from_slice(v);
        } else {
            let mix = &wagv[3 * width..][at.clone()];
            for (((out, &v), &first), &mix) in scratch.v.iter_mut().zip(v).zip(&*v_first).zip(mix) {
                *out = v + (first - v) * mix;
            }
        }
        cx.level.run(OneHead {
            r: &rkv[at.clone()],
            k: &rkv[width..][at.clone()],
            w: &wagv[at.clone()],
            a: &wagv[width..][at.clone()],
            g: &wagv[2 * width..][at.clone()],
            k_k: &cx.vector(self.k_k)[at.clone()],
            k_a: &cx.vector(self.k_a)[at.clone()],
            r_k: &cx.vector(self.r_k)[at.clone()],
            weight: &cx.vector(self.norm.weight)[at.clone()],
            bias: self.norm.bias.map(|b| &cx.vector(b)[at.clone()]),
            eps: self.norm.eps,
            scratch,
            state,
            // SAFETY: each head of a row is one lane's.
            out: unsafe { cx.columns(self.out, row, at.clone()) },
        });
    }
}

/// Vectors of one head that are made on the way.
struct Scratch<'a> {
    v: &'a mut [f32],
    /// The normalised key that is taken out of the state, and the one put back in its place.
    removed: &'a mut [f32],
    replaced: &'a mut [f32],
    k: &'a mut [f32],
    decay: &'a mut [f32],
    y: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    const VECTORS: usize = 6;

    fn new(work: &'a mut [f32], size: usize) -> Scratch<'a> {
        let mut parts = work.chunks_exact_mut(size);
        let mut next = || parts.next().expect("the scratch was taken for this size");
        Scratch { v: next(), removed: next(), replaced: next(), k: next(), decay: next(), y: next() }
    }
}

/// One head of one row.
struct OneHead<'a> {
    r: &'a [f32],
    k: &'a [f32],
    w: &'a [f32],
    a: &'a [f32],
    g: &'a [f32],
    k_k: &'a [f32],
    k_a: &'a [f32],
    r_k: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    scratch: Scratch<'a>,
    state: &'a mut [f32],
    out: &'a mut [f32],
}

impl Kernel for OneHead<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        self.keys_and_decay(isa);
        self.step(isa);
        self.finish(isa);
    }
}

impl OneHead<'_> {
    #[inline(always)]
    fn keys_and_decay<I: Isa>(&mut self, isa: I) {
        let Scratch { removed, replaced, k, decay, .. } = &mut self.scratch;
        removed.iter_mut().zip(self.k).zip(self.k_k).for_each(|((kk, k), k_k)| *kk = k * k_k);
        let length = isa.dot(removed, removed).sqrt().max(1e-12);
        for ((kk, back), a) in removed.iter_mut().zip(&mut **replaced).zip(self.a) {
            *kk /= length;
            *back = -(*kk * a);
        }
        for (((out, k), a), k_a) in k.iter_mut().zip(self.k).zip(self.a).zip(self.k_a) {
            *out = k * (1.0 + (a - 1.0) * k_a);
        }
        decay.iter_mut().zip(self.w).for_each(|(decay, &w)| *decay = exp(DECAY * sigmoid(w)));
    }

    /// Moves the state, a line per value, and reads it with the receptance.
    #[inline(always)]
    fn step<I: Isa>(&mut self, isa: I) {
        let Scratch { v, removed, replaced, k, decay, y } = &mut self.scratch;
        let n = k.len();
        for ((line, &v), y) in self.state.chunks_exact_mut(n).zip(&**v).zip(&mut **y) {
            let (value, share) = (isa.splat(v), isa.splat(isa.dot(line, removed)));
            let mut sums = isa.zero();
            for at in (0..n).step_by(WIDTH) {
                let kept = isa.mul(isa.load_at(line, at), isa.load_at(decay, at));
                let replaced = isa.fma(share, isa.load_at(replaced, at), kept);
                let state = isa.fma(value, isa.load_at(k, at), replaced);
                isa.store_at(state, line, at);
                sums = isa.fma(state, isa.load_at(self.r, at), sums);
            }
            *y = isa.sum(sums);
        }
    }

    /// Group norm, bonus and gate.
    #[inline(always)]
    fn finish<I: Isa>(&mut self, isa: I) {
        let Scratch { v, k, y, removed, .. } = &mut self.scratch;
        let (mean, scale) = mean_and_scale(isa, NormKind::Layer, self.eps, y);
        // The removed key is not needed any more.
        removed.iter_mut().zip(&**k).zip(self.r_k).for_each(|((t, k), r_k)| *t = k * r_k);
        let bonus = isa.dot(self.r, removed);
        for (i, out) in self.out.iter_mut().enumerate() {
            let normed = (y[i] - mean) * scale * self.weight[i] + self.bias.map_or(0.0, |b| b[i]);
            *out = (normed + bonus * v[i]) * self.g[i];
        }
    }
}
