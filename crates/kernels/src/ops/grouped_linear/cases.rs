use exotherm_tensor::DType;

use super::GroupedLinear;
use crate::conformance::one_op::OneOp;
use crate::conformance::shapes;
use crate::conformance::{Case, Tolerance};

pub(crate) fn cases() -> Vec<Case> {
    let shapes = shapes::all().into_iter();
    let mut cases: Vec<Case> = shapes
        .map(|s| {
            let groups = [(0, s.dtype, s.n_out), (s.n_in, s.dtype, 3), (2 * s.n_in, s.dtype, s.n_out)];
            case(&s.name(), s.n_in, &groups, s.rows)
        })
        .collect();
    let mixed = [(256, DType::Q4_1, 9), (0, DType::F32, 33), (100, DType::Q6K, 4), (256, DType::F16, 1)];
    cases.extend([1, 3, 17].map(|rows| case(&format!("mixed-rows{rows}"), 256, &mixed, rows)));
    cases
}

/// `groups`: where the input begins, the weights' type and how many outputs there are.
fn case(name: &str, n_in: usize, groups: &[(usize, DType, usize)], rows: usize) -> Case {
    let mut case = OneOp::with_rows(n_in as u64, rows);
    let width = groups.iter().map(|g| g.0 + n_in).max().unwrap_or(0);
    let x = case.input(width, 1.0);
    let out = case.output(groups.iter().map(|g| g.2).sum());
    let groups = groups.iter().map(|&(at, dtype, n_out)| (at, case.matrix(dtype, n_out, n_in))).collect();
    case.case(name, GroupedLinear { x, groups, out }, Tolerance::sum(n_in, 1.0))
}
