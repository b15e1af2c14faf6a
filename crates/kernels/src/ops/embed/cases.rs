use exotherm_tensor::DType;

use super::Embed;
use crate::conformance::one_op::{OneOp, VOCAB};
use crate::conformance::shapes::{self, Shape};
use crate::conformance::{Case, Tolerance};
use crate::ops::NormKind;

/// Decoded weights are at most about 1 and are scaled, added and normed, never summed up in rows.
const TOLERANCE: f32 = 1.0;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = shapes::all().into_iter().map(|shape| plain(shape, 1.0)).collect();
    cases.extend(shapes::one_per_type().into_iter().map(|shape| plain(shape, 8.5)));
    for kind in [NormKind::Rms, NormKind::Layer] {
        cases.extend(shapes::floats().into_iter().map(|shape| normed(shape, kind)));
    }
    cases.extend(DType::all().filter(|t| !t.is_quantized()).map(positioned));
    cases
}

fn plain(shape: Shape, scale: f32) -> Case {
    let mut case = OneOp::with_rows(shape.seed(), shape.rows);
    let table = case.matrix(shape.dtype, VOCAB, shape.n_in);
    let out = case.output(shape.n_in);
    let op = Embed { table, scale, positions: None, norm: None, out };
    case.case(format!("{}-scale{scale}", shape.name()), op, Tolerance::roundings(0.1))
}

fn normed(shape: Shape, kind: NormKind) -> Case {
    let mut case = OneOp::with_rows(shape.seed(), shape.rows);
    let table = case.matrix(shape.dtype, VOCAB, shape.n_in);
    // So small that the epsilon counts as much as the values.
    let norm = Some(case.norm(kind, shape.n_in, 1e-5));
    let out = case.output(shape.n_in);
    let op = Embed { table, scale: 0.004, positions: None, norm, out };
    case.case(format!("{}-{kind:?}", shape.name()), op, Tolerance::roundings(TOLERANCE))
}

fn positioned(dtype: DType) -> Case {
    let mut case = OneOp::with_steps(3, crate::KvType::F32, vec![vec![(0, 4, 3), (1, 0, 2), (2, 59, 1)]]);
    case.builder.limit_positions(60);
    let table = case.matrix(DType::F16, VOCAB, 37);
    let positions = Some(case.matrix(dtype, 60, 37));
    let out = case.output(37);
    let op = Embed { table, scale: 1.5, positions, norm: None, out };
    case.case(format!("positions-{}", dtype.name()), op, Tolerance::roundings(TOLERANCE))
}
