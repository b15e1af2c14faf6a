use exotherm_tensor::{DType, Tensor};

use super::MoeRoute;
use crate::conformance::one_op::OneOp;
use crate::conformance::shapes;
use crate::conformance::{Case, Tolerance};
use crate::ops::NormKind;

/// Routers: experts, chosen, width, rows.
const ROUTERS: [(usize, usize, usize, usize); 8] = [
    (1, 1, 7, 2),
    (4, 1, 36, 5),
    (4, 3, 33, 17),
    (4, 4, 52, 3),
    (8, 2, 97, 33),
    (60, 3, 36, 5),
    (60, 60, 36, 2),
    (128, 8, 52, 3),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for router in ROUTERS {
        for renormalize in [true, false] {
            cases.push(case(DType::F32, router, NormKind::Rms, renormalize));
        }
        cases.push(case(DType::F16, router, NormKind::Layer, true));
    }
    for shape in shapes::one_per_type() {
        cases.push(case(shape.dtype, (10, 3, shape.n_in, 5), NormKind::Rms, true));
    }
    cases.extend([1, 3, 7, 12].map(tied));
    cases
}

/// Scores are sums, and the weights are exponentials of them: about as exact. The largest may stand alone, so that
/// the others are far below it and only the absolute error counts.
fn tolerance(width: usize) -> Tolerance {
    Tolerance::sum(width, 2.0)
}

fn case(
    dtype: DType,
    (experts, top_k, width, rows): (usize, usize, usize, usize),
    kind: NormKind,
    renormalize: bool,
) -> Case {
    let mut case = OneOp::with_rows((experts * width) as u64, rows);
    let x = case.uneven_input(width);
    let norm = case.norm(kind, width, 1e-5);
    let weights = case.numbers.tensor(dtype, experts, width, 1.0 / (width as f32).sqrt());
    let router = case.builder.matrix("router", vec![weights]);
    let (normed, routes) = (case.output(width), case.output(2 * top_k));
    let op = MoeRoute { x, norm, router, top_k, renormalize, normed, routes };
    let name = format!("{}-{top_k}of{experts}-{width}-rows{rows}-{kind:?}-{renormalize}", dtype.name());
    case.case(name, op, tolerance(width))
}

/// Of twelve experts, 1, 4, 5, 8 and 10 score exactly 0, and every row has others above and below.
fn tied(top_k: usize) -> Case {
    let (experts, width) = (12, 36);
    let mut case = OneOp::with_rows(top_k as u64, 5);
    let x = case.uneven_input(width);
    let norm = case.norm(NormKind::Rms, width, 1e-5);
    let mut weights = case.numbers.signed(experts * width, 0.3);
    for tied in [1, 4, 5, 8, 10] {
        weights[tied * width..(tied + 1) * width].fill(0.0);
    }
    let weights = Tensor::from_f32(&[experts, width], &weights).expect("the shape has no zero");
    let router = case.builder.matrix("router", vec![weights]);
    let (normed, routes) = (case.output(width), case.output(2 * top_k));
    let op = MoeRoute { x, norm, router, top_k, renormalize: true, normed, routes };
    case.case(format!("tied-{top_k}"), op, tolerance(width))
}
