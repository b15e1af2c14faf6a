use exotherm_tensor::DType;

use super::NormLinear;
use crate::conformance::one_op::OneOp;
use crate::conformance::shapes::{self, Shape};
use crate::conformance::{Case, Tolerance};
use crate::ops::{Activation, NormKind};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes::all() {
        cases.push(case(shape, None, Activation::None, true));
        cases.push(case(shape, Some(NormKind::Rms), Activation::None, false));
    }
    for shape in shapes::one_per_type() {
        cases.push(case(shape, Some(NormKind::Rms), Activation::SiluGlu, false));
        cases.push(case(shape, Some(NormKind::Layer), Activation::GeluTanh, true));
    }
    let activations = [
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::SquaredRelu,
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::SiluGlu,
        Activation::GeluTanhGlu,
    ];
    for activation in activations {
        for shape in [Shape { n_out: 14, ..shapes::floats()[1] }, shapes::floats()[3]] {
            cases.push(case(shape, Some(NormKind::Layer), activation, true));
            cases.push(case(shape, Some(NormKind::Rms), activation, false));
            cases.push(case(shape, None, activation, true));
        }
    }
    cases.extend([(1, 40), (3, 52), (17, 256)].map(|(rows, n_in)| mixed(rows, n_in)));
    cases.push(saturated());
    cases
}

fn case(shape: Shape, kind: Option<NormKind>, activation: Activation, bias: bool) -> Case {
    let mut case = OneOp::with_rows(shape.seed(), shape.rows);
    let x = if kind.is_some() { case.uneven_input(shape.n_in) } else { case.input(shape.n_in, 1.0) };
    let norm = kind.map(|kind| case.norm(kind, shape.n_in, 1e-5));
    let n_out = if activation.is_gated() { shape.n_out.next_multiple_of(2) } else { shape.n_out };
    let weight = case.matrix(shape.dtype, n_out, shape.n_in);
    let bias = bias.then(|| case.vector(n_out, 0.0, 1.0));
    let out = case.output(activation.width(n_out));
    let op = NormLinear { x, norm, weight, bias, activation, out };
    let name = format!("{}-{kind:?}-{activation:?}-bias{}", shape.name(), bias.is_some());
    case.case(name, op, tolerance(shape.n_in, activation))
}

/// A gated activation multiplies two sums and a squared one a sum with itself, each about √n; rows are at most
/// about 2 after a norm.
fn tolerance(n_in: usize, activation: Activation) -> Tolerance {
    let sum = Tolerance::sum(n_in, 2.0);
    match activation {
        Activation::SquaredRelu | Activation::SiluGlu | Activation::GeluTanhGlu => {
            sum.times(2.0 + (n_in as f32).sqrt())
        }
        _ => sum,
    }
}

/// Q, K and V of different types in one matrix.
fn mixed(rows: usize, n_in: usize) -> Case {
    let mut case = OneOp::with_rows(rows as u64, rows);
    let types = match n_in {
        256 => vec![(DType::Q4K, 20), (DType::Q6K, 7), (DType::Q8_0, 9), (DType::F32, 3), (DType::BF16, 21)],
        _ => vec![(DType::F16, 20), (DType::F32, 7), (DType::BF16, 9)],
    };
    let x = case.uneven_input(n_in);
    let norm = Some(case.norm(NormKind::Rms, n_in, 1e-6));
    let weight = case.mixed_matrix(&types, n_in);
    let n_out = types.iter().map(|t| t.1).sum();
    let bias = Some(case.vector(n_out, 0.0, 1.0));
    let out = case.output(n_out);
    let op = NormLinear { x, norm, weight, bias, activation: Activation::None, out };
    case.case(format!("mixed-{n_in}-rows{rows}"), op, tolerance(n_in, Activation::None))
}

/// Sums in the hundreds, where an exponential that is not held back overflows.
fn saturated() -> Case {
    let mut case = OneOp::with_rows(9, 4);
    let x = case.input(36, 60.0);
    let weight = case.matrix(DType::F32, 20, 36);
    let out = case.output(10);
    let op = NormLinear { x, norm: None, weight, bias: None, activation: Activation::SiluGlu, out };
    case.case("saturated", op, Tolerance::sum(36, 60.0).times(300.0))
}
