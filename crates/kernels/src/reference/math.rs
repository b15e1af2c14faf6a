//! The arithmetic that the references share.

use std::ops::Range;

use super::ReferenceBackend;
use crate::ops::{Activation, Norm, NormKind};
use crate::program::{Matrix, Program};
use crate::rounding::{Activations, Rounding, rounded};

pub(crate) fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(x)).exp())) as f32
}

fn gelu_tanh(x: f32) -> f32 {
    let x = f64::from(x);
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    (0.5 * x * (1.0 + inner.tanh())) as f32
}

fn gelu_erf(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * erfc(-x / std::f64::consts::SQRT_2)) as f32
}

/// The complementary error function: a Taylor series near zero, a continued fraction in the tails.
pub(crate) fn erfc(x: f64) -> f64 {
    let scale = 2.0 / std::f64::consts::PI.sqrt();
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            let add = term / f64::from(2 * n + 1);
            sum += add;
            if add.abs() < 1e-17 * sum.abs() {
                break;
            }
        }
        return 1.0 - scale * sum;
    }
    // erfc(x) = exp(-x²)/sqrt(π) / (x + (1/2)/(x + 1/(x + (3/2)/(x + …)))), evaluated from the inside out.
    let z = x.abs();
    let fraction = (1..=60).rev().fold(z, |inner, k| z + f64::from(k) / 2.0 / inner);
    let tail = (-z * z).exp() / fraction / std::f64::consts::PI.sqrt();
    if x > 0.0 { tail } else { 2.0 - tail }
}

/// An activation of one value.
pub(crate) fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::None => x,
        Activation::GeluTanh => gelu_tanh(x),
        Activation::GeluErf => gelu_erf(x),
        Activation::SquaredRelu => x.max(0.0) * x.max(0.0),
        Activation::Tanh => f64::from(x).tanh() as f32,
        Activation::Sigmoid => sigmoid(x),
        Activation::SiluGlu | Activation::GeluTanhGlu => unreachable!("gated activations take two values"),
    }
}

/// A gated activation of two values.
pub(crate) fn gated(activation: Activation, gate: f32, up: f32) -> f32 {
    match activation {
        Activation::SiluGlu => (f64::from(gate) / (1.0 + (-f64::from(gate)).exp())) as f32 * up,
        Activation::GeluTanhGlu => gelu_tanh(gate) * up,
        _ => unreachable!("{activation:?} takes one value"),
    }
}

pub(crate) fn soft_capped(cap: Option<f32>, x: f32) -> f32 {
    match cap {
        Some(cap) => (f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh()) as f32,
        None => x,
    }
}

/// The normed row, weights and bias applied.
pub(crate) fn normalized(program: &Program, norm: &Norm, x: &[f32]) -> Vec<f32> {
    let n = x.len() as f64;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
    };
    let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
    let weight = program.vector(norm.weight);
    let bias = norm.bias.map(|b| program.vector(b));
    let value = |(i, &v): (usize, &f32)| {
        let scaled = (f64::from(v) - mean) * scale * f64::from(weight[i]);
        (scaled + bias.map_or(0.0, |b| f64::from(b[i]))) as f32
    };
    x.iter().enumerate().map(value).collect()
}

/// Eight partial sums in f64, over whole eights first, so that the compiler may keep them in vector registers.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(a) * f64::from(b);
        }
    }
    for (sum, (&a, &b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += f64::from(a) * f64::from(b);
    }
    sums.iter().sum()
}

/// Rows `rows` of the matrix times each of `x`, rounded as the weights ask for, plus the bias. The outputs are
/// shared out among threads, each of them made by one thread alone.
pub(crate) fn linear(
    m: &Matrix,
    rows: Range<usize>,
    x: &[&[f32]],
    bias: Option<&[f32]>,
    activations: Activations,
) -> Vec<Vec<f32>> {
    let mut inputs: Vec<(Rounding, Vec<Vec<f32>>)> = Vec::new();
    for rounding in m.segments.iter().map(|s| activations.rounding(s.dtype())) {
        if inputs.iter().all(|(other, _)| *other != rounding) {
            inputs.push((rounding, x.iter().map(|row| rounded(rounding, row)).collect()));
        }
    }
    let outputs: Vec<usize> = rows.clone().collect();
    let work = rows.len() * m.n_in * x.len();
    let threads = if work < 1 << 18 { 1 } else { ReferenceBackend::threads() };
    let share = outputs.len().div_ceil(threads);
    let column = |row: usize| -> Vec<f32> {
        let mut weights = vec![0.0f32; m.n_in];
        m.decode_row(row, &mut weights);
        let bias = bias.map_or(0.0, |b| f64::from(b[row - rows.start]));
        let rounding = activations.rounding(m.dtype_of_row(row));
        rounding.round_weights(&mut weights);
        let (_, x) = inputs.iter().find(|(r, _)| *r == rounding).expect("every segment's inputs are there");
        x.iter().map(|x| (dot(&weights, x) + bias) as f32).collect()
    };
    let columns: Vec<Vec<f32>> = std::thread::scope(|scope| {
        let shares: Vec<_> = outputs
            .chunks(share.max(1))
            .map(|chunk| scope.spawn(|| chunk.iter().map(|&row| column(row)).collect::<Vec<_>>()))
            .collect();
        shares.into_iter().flat_map(|s| s.join().expect("a dot product does not panic")).collect()
    });
    (0..x.len()).map(|r| columns.iter().map(|c| c[r]).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::erfc;

    #[test]
    fn erfc_agrees_with_known_values() {
        // Abramowitz and Stegun, table 7.1, and its symmetry.
        let known = [(0.0, 1.0), (0.5, 0.479_500_122_186_953_5), (1.0, 0.157_299_207_050_285_13)];
        let tails = [
            (2.9, 4.109_787_809_945_13e-5),
            (3.1, 1.164_865_736_998_67e-5),
            (5.0, 1.537_459_794_428_035e-12),
        ];
        for (x, want) in known.into_iter().chain(tails) {
            assert!((erfc(x) / want - 1.0).abs() < 1e-9, "erfc({x}) = {}", erfc(x));
            assert!((erfc(-x) - (2.0 - want)).abs() < 1e-12);
        }
    }
}
