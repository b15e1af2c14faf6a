//! Kernels over single rows: norms, activations and the like.

use super::math;
use super::simd::{Isa, Kernel, Level, WIDTH};
use crate::ops::{Activation, Norm, NormKind};
use crate::program::Program;

/// Writes the normed row to `out`, weights and bias applied.
pub(crate) fn normalize(level: Level, program: &Program, norm: &Norm, x: &[f32], out: &mut [f32]) {
    let weight = program.vector(norm.weight);
    let bias = norm.bias.map(|b| program.vector(b));
    level.run(Normalize { kind: norm.kind, eps: norm.eps, weight, bias, x, out });
}

struct Normalize<'a> {
    kind: NormKind,
    eps: f32,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Normalize<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (mean, scale) = mean_and_scale(isa, self.kind, self.eps, self.x);
        let (x, weight, out) = (self.x, &self.weight[..self.x.len()], &mut self.out[..self.x.len()]);
        for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
            *out = (x - mean) * scale * weight;
        }
        if let Some(bias) = self.bias {
            out.iter_mut().zip(bias).for_each(|(out, &bias)| *out += bias);
        }
    }
}

/// What is taken off a row and what the rest is multiplied with.
#[inline(always)]
pub(crate) fn mean_and_scale<I: Isa>(isa: I, kind: NormKind, eps: f32, x: &[f32]) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => sum_of(isa, x, |v| v) / n,
    };
    let below = isa.splat(-mean);
    let mut squares = isa.zero();
    let (whole, rest) = x.as_chunks::<WIDTH>();
    for chunk in whole {
        let v = isa.add(isa.load(chunk), below);
        squares = isa.fma(v, v, squares);
    }
    if !rest.is_empty() {
        // The places past the end count as the mean.
        let mut chunk = [mean; WIDTH];
        chunk[..rest.len()].copy_from_slice(rest);
        let v = isa.add(isa.load(&chunk), below);
        squares = isa.fma(v, v, squares);
    }
    (mean, 1.0 / (isa.sum(squares) / n + eps).sqrt())
}

#[inline(always)]
fn sum_of<I: Isa>(isa: I, x: &[f32], value: impl Fn(I::V) -> I::V) -> f32 {
    let mut sums = isa.zero();
    for at in (0..x.len()).step_by(WIDTH) {
        sums = isa.add(sums, value(isa.load_at(x, at)));
    }
    isa.sum(sums)
}

/// Applies an activation of one value to each.
pub(crate) fn activate(level: Level, activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::None => {}
        Activation::GeluTanh => level.run(Map(values, math::gelu_tanh)),
        Activation::GeluErf => level.run(Map(values, math::gelu_erf)),
        Activation::SquaredRelu => level.run(Map(values, |v: f32| v.max(0.0) * v.max(0.0))),
        Activation::Tanh => level.run(Map(values, math::tanh)),
        Activation::Sigmoid => level.run(Map(values, math::sigmoid)),
        Activation::SiluGlu | Activation::GeluTanhGlu => unreachable!("gated activations take two values"),
    }
}

/// Writes the gated activation of gates and ups to `out`.
pub(crate) fn gate(level: Level, activation: Activation, gates: &[f32], ups: &[f32], out: &mut [f32]) {
    match activation {
        Activation::SiluGlu => level.run(Gate { gates, ups, out, f: math::silu }),
        Activation::GeluTanhGlu => level.run(Gate { gates, ups, out, f: math::gelu_tanh }),
        _ => unreachable!("{activation:?} takes one value"),
    }
}

/// Values become cap · tanh(value / cap).
pub(crate) fn soft_cap(level: Level, cap: Option<f32>, values: &mut [f32]) {
    if let Some(cap) = cap {
        level.run(Map(values, |v| cap * math::tanh(v / cap)));
    }
}

struct Map<'a, F>(&'a mut [f32], F);

impl<F: Fn(f32) -> f32> Kernel for Map<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        self.0.iter_mut().for_each(|v| *v = (self.1)(*v));
    }
}

struct Gate<'a, F> {
    gates: &'a [f32],
    ups: &'a [f32],
    out: &'a mut [f32],
    f: F,
}

impl<F: Fn(f32) -> f32> Kernel for Gate<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        for ((out, &gate), &up) in self.out.iter_mut().zip(self.gates).zip(self.ups) {
            *out = (self.f)(gate) * up;
        }
    }
}

/// out = now + (before − now) · mix
pub(crate) fn shift_mix(level: Level, now: &[f32], before: &[f32], mix: &[f32], out: &mut [f32]) {
    level.run(Shift { now, before, mix, out });
}

struct Shift<'a> {
    now: &'a [f32],
    before: &'a [f32],
    mix: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Shift<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        let rows = self.now.iter().zip(self.before).zip(self.mix);
        for (out, ((&now, &before), &mix)) in self.out.iter_mut().zip(rows) {
            *out = now + (before - now) * mix;
        }
    }
}
