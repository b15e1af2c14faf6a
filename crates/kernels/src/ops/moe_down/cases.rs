use exotherm_tensor::DType;

use super::MoeDown;
use crate::conformance::one_op::OneOp;
use crate::conformance::shapes;
use crate::conformance::{Case, Tolerance};
use crate::ops::moe_gate_up::cases::random_routes;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes::all() {
        cases.push(case(shape.dtype, (5, 3), (shape.n_out.min(20), shape.n_in), shape.rows));
    }
    cases.push(case(DType::F32, (1, 1), (7, 33), 2));
    cases.push(case(DType::F32, (4, 1), (36, 36), 5));
    cases.push(case(DType::F32, (4, 4), (52, 13), 17));
    cases.push(case(DType::F16, (60, 3), (33, 10), 3));
    cases.push(case(DType::F16, (2, 2), (200, 10), 17));
    cases.push(case(DType::Q8_0, (2, 2), (300, 32), 17));
    cases
}

fn case(
    dtype: DType,
    (experts, top_k): (usize, usize),
    (width, hidden_width): (usize, usize),
    rows: usize,
) -> Case {
    let mut case = OneOp::with_rows((width * hidden_width) as u64, rows);
    let hidden = case.input(top_k * hidden_width, 1.0);
    let routes = random_routes(&mut case, experts, top_k);
    let down = case.matrix(dtype, experts * width, hidden_width);
    let residual = case.input(width, 2.0);
    let op = MoeDown { hidden, routes, top_k, experts, down, residual };
    let name = format!("{}-{top_k}of{experts}-{width}x{hidden_width}-rows{rows}", dtype.name());
    // The experts' sums are added up with weights under 1.
    case.case(name, op, Tolerance::sum(hidden_width, 1.0).times(top_k as f32))
}
