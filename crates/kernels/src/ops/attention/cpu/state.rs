//! What is known of a query's softmax after some of its positions: the largest score, in powers of two, then the sum
//! of the weights relative to it, and from [`VALUES`] on the values summed up with these weights.

use crate::cpu::{Isa, WIDTH};

pub(super) const LARGEST: usize = 0;
pub(super) const SUM: usize = 1;
pub(super) const VALUES: usize = WIDTH;

/// Floats of a state whose values take `padded`.
pub(super) fn floats(padded: usize) -> usize {
    VALUES + padded
}

/// Begins a state; a sink is a score that is there before all others and brings no value.
pub(super) fn begin(state: &mut [f32], sink: Option<f32>) {
    state.fill(0.0);
    state[LARGEST] = sink.map_or(f32::NEG_INFINITY, |sink| sink * std::f32::consts::LOG2_E);
    state[SUM] = if sink.is_some() { 1.0 } else { 0.0 };
}

#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// 2^x in all lanes, and in one.
#[inline(always)]
pub(super) fn power<I: Isa>(isa: I, x: f32) -> (I::V, f32) {
    let power = isa.exp2(isa.splat(x));
    let mut lanes = [0.0; WIDTH];
    isa.store(power, &mut lanes);
    (power, lanes[0])
}

/// Adds a state of later positions.
#[inline(always)]
pub(super) fn merge<I: Isa>(isa: I, total: &mut [f32], part: &[f32]) {
    if total[LARGEST] == f32::NEG_INFINITY {
        return total.copy_from_slice(part);
    }
    let largest = larger(total[LARGEST], part[LARGEST]);
    let (old, old_scalar) = power(isa, total[LARGEST] - largest);
    let (new, new_scalar) = power(isa, part[LARGEST] - largest);
    total[LARGEST] = largest;
    total[SUM] = total[SUM] * old_scalar + part[SUM] * new_scalar;
    let totals = total[VALUES..].as_chunks_mut::<WIDTH>().0;
    for (total, part) in totals.iter_mut().zip(part[VALUES..].as_chunks::<WIDTH>().0) {
        let sum = isa.fma(isa.load(part), new, isa.mul(isa.load(total), old));
        isa.store(sum, total);
    }
}

/// Writes the weighted mean of the values.
#[inline(always)]
pub(super) fn finish<I: Isa>(isa: I, state: &[f32], out: &mut [f32]) {
    let scale = isa.splat(1.0 / state[SUM]);
    for at in (0..out.len()).step_by(WIDTH) {
        isa.store_at(isa.mul(isa.load_at(&state[VALUES..], at), scale), out, at);
    }
}
