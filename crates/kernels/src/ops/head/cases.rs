use super::Head;
use crate::conformance::one_op::OneOp;
use crate::conformance::shapes::{self, Shape};
use crate::conformance::{Case, Tolerance};
use crate::ops::NormKind;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes::all() {
        cases.push(case(shape, NormKind::Rms, None, &all(shape)));
    }
    for shape in shapes::one_per_type() {
        cases.push(case(shape, NormKind::Layer, Some(5.0), &[1]));
    }
    for shape in shapes::floats() {
        let last = shape.rows as u32 - 1;
        cases.push(case(shape, NormKind::Rms, Some(3.0), &[last, 0, last, last]));
        cases.push(case(shape, NormKind::Layer, None, &[1, last / 2]));
        cases.push(case(shape, NormKind::Rms, None, &[]));
    }
    cases
}

fn all(shape: Shape) -> Vec<u32> {
    (0..shape.rows as u32).collect()
}

fn case(shape: Shape, kind: NormKind, soft_cap: Option<f32>, wanted: &[u32]) -> Case {
    let mut case = OneOp::with_rows(shape.seed(), shape.rows);
    case.want_logits(wanted);
    let x = case.uneven_input(shape.n_in);
    let norm = case.norm(kind, shape.n_in, 1e-5);
    let weight = case.matrix(shape.dtype, shape.n_out, shape.n_in);
    let logits = case.builder.logits_buffer(shape.n_out);
    let name = format!("{}-{kind:?}-cap{soft_cap:?}-of{wanted:?}", shape.name());
    case.case(name, Head { x, norm, weight, soft_cap, logits }, Tolerance::sum(shape.n_in, 2.0))
}
