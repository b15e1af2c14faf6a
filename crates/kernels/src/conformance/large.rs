//! Cases beyond the suite, for kernels that multiply in tiles: several of them in every direction, the last ones not full.

use exotherm_tensor::DType;

use super::one_op::OneOp;
use super::{Case, Tolerance};
use crate::backend::Place;
use crate::ops::{Activation, LinearResidual, MoeDown, MoeGateUp, NormLinear};
use crate::program::Buf;

const ROWS: usize = 150;
/// Columns: some units more than any kernel takes at a time.
const N_IN: usize = 320;
const EXPERTS: usize = 5;
const TOP_K: usize = 2;

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [DType::Q4_0, DType::Q8_0, DType::F16].map(gated).into();
    cases.extend([DType::Q4_0, DType::BF16].map(onto_residual));
    cases.push(gate_up());
    cases.push(down());
    cases
}

fn gated(dtype: DType) -> Case {
    let (mut case, outs) = (OneOp::with_rows(1, ROWS), 150);
    let x = case.input(N_IN, 1.0);
    let weight = case.matrix(dtype, 2 * outs, N_IN);
    let bias = Some(case.vector(2 * outs, 0.0, 1.0));
    let out = case.output(outs);
    let op = NormLinear { x, norm: None, weight, bias, activation: Activation::SiluGlu, out };
    let tolerance = Tolerance::sum(N_IN, 2.0).times(2.0 + (N_IN as f32).sqrt());
    case.case(format!("large-gated-{}", dtype.name()), op, tolerance)
}

fn onto_residual(dtype: DType) -> Case {
    let (mut case, outs) = (OneOp::with_rows(2, ROWS), 300);
    let x = case.input(N_IN, 1.0);
    let weight = case.matrix(dtype, outs, N_IN);
    let residual = case.input(outs, 2.0);
    let op = LinearResidual { x, weight, bias: None, post_norm: None, residual };
    case.case(format!("large-residual-{}", dtype.name()), op, Tolerance::sum(N_IN, 1.0))
}

/// All rows visit the first expert, and nobody the last.
fn routes(case: &mut OneOp) -> Buf {
    let routes = case.builder.buffer("routes", 2 * TOP_K);
    case.fill_each_step(Place::Buffer(routes), |numbers, rows| {
        let row = |row: usize| [0.0, (1 + row % (EXPERTS - 2)) as f32];
        (0..rows).flat_map(|r| row(r).into_iter().chain(numbers.around(TOP_K, 0.5, 0.45))).collect()
    });
    routes
}

fn gate_up() -> Case {
    let (mut case, hidden) = (OneOp::with_rows(3, ROWS), 150);
    let normed = case.input(N_IN, 1.0);
    let routes = routes(&mut case);
    let gate = case.matrix(DType::Q4_0, EXPERTS * hidden, N_IN);
    let up = case.matrix(DType::Q8_0, EXPERTS * hidden, N_IN);
    let out = case.output(TOP_K * hidden);
    let activation = Activation::SiluGlu;
    let op = MoeGateUp { normed, routes, top_k: TOP_K, experts: EXPERTS, gate, up, activation, out };
    case.case("large-gate-up", op, Tolerance::sum(N_IN, 1.0).times(2.0 + (N_IN as f32).sqrt()))
}

fn down() -> Case {
    let (mut case, width) = (OneOp::with_rows(4, ROWS), 200);
    let hidden = case.input(TOP_K * N_IN, 1.0);
    let routes = routes(&mut case);
    let down = case.matrix(DType::Q4_0, EXPERTS * width, N_IN);
    let residual = case.input(width, 2.0);
    let op = MoeDown { hidden, routes, top_k: TOP_K, experts: EXPERTS, down, residual };
    case.case("large-down", op, Tolerance::sum(N_IN, 1.0).times(TOP_K as f32))
}
