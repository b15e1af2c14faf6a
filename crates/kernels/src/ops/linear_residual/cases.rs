use exotherm_tensor::DType;

use super::LinearResidual;
use crate::conformance::one_op::OneOp;
use crate::conformance::shapes::{self, Shape};
use crate::conformance::{Case, Tolerance};
use crate::ops::NormKind;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes::all() {
        cases.push(case(shape, None, false));
    }
    for shape in shapes::one_per_type() {
        cases.push(case(shape, Some(NormKind::Rms), false));
        cases.push(case(shape, None, true));
    }
    for shape in shapes::floats() {
        cases.push(case(shape, Some(NormKind::Rms), true));
        cases.push(case(shape, Some(NormKind::Layer), true));
    }
    cases.push(mixed());
    cases
}

fn case(shape: Shape, post_norm: Option<NormKind>, bias: bool) -> Case {
    let mut case = OneOp::with_rows(shape.seed(), shape.rows);
    // Before a post-norm the sums are so small that its epsilon counts.
    let magnitude = if post_norm.is_some() { 0.002 } else { 1.0 };
    let x = case.input(shape.n_in, magnitude);
    let residual = case.input(shape.n_out, 2.0);
    let weight = case.matrix(shape.dtype, shape.n_out, shape.n_in);
    let bias = bias.then(|| case.vector(shape.n_out, 0.0, magnitude));
    let name = format!("{}-{post_norm:?}-bias{}", shape.name(), bias.is_some());
    let post_norm = post_norm.map(|kind| case.norm(kind, shape.n_out, 1e-5));
    let op = LinearResidual { x, weight, bias, post_norm, residual };
    case.case(name, op, Tolerance::sum(shape.n_in, 1.0))
}

fn mixed() -> Case {
    let mut case = OneOp::with_rows(1, 5);
    let (x, residual) = (case.input(64, 1.0), case.input(19, 2.0));
    let weight = case.mixed_matrix(&[(DType::Q5_1, 9), (DType::F16, 10)], 64);
    let op = LinearResidual { x, weight, bias: None, post_norm: None, residual };
    case.case("mixed", op, Tolerance::sum(64, 1.0))
}
