use exotherm_tensor::DType;

use super::ChannelMix;
use crate::KvType;
use crate::conformance::data::Piece;
use crate::conformance::one_op::OneOp;
use crate::conformance::shapes;
use crate::conformance::{Case, Tolerance};
use crate::ops::NormKind;
use crate::ops::shift_mix::cases::schedules;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes::all() {
        cases.push(case(shape.dtype, shape.n_out, shape.n_in, vec![vec![(0, 0, shape.rows)]]));
    }
    for steps in schedules() {
        cases.push(case(DType::F32, 52, 33, steps.clone()));
        cases.push(case(DType::Q4_0, 36, 64, steps));
    }
    cases
}

/// A sum of about √n, squared.
fn case(dtype: DType, n_out: usize, n_in: usize, steps: Vec<Vec<Piece>>) -> Case {
    let name = format!("{}-{n_out}x{n_in}-steps{steps:?}", dtype.name());
    let mut case = OneOp::with_steps((n_out * n_in) as u64, KvType::F32, steps);
    let x = case.uneven_input(n_in);
    let norm = case.norm(NormKind::Layer, n_in, 1e-5);
    let mix = case.vector(n_in, 0.5, 0.5);
    let state = case.recurrent(n_in, 2.0);
    let weight = case.matrix(dtype, n_out, n_in);
    let out = case.output(n_out);
    let op = ChannelMix { x, norm, mix, state, weight, out };
    case.case(name, op, Tolerance::sum(n_in, 2.0).times(2.0 + (n_in as f32).sqrt()))
}
