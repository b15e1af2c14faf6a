use exotherm_tensor::DType;

use super::MoeGateUp;
use crate::Place;
use crate::conformance::one_op::OneOp;
use crate::conformance::shapes;
use crate::conformance::{Case, Tolerance};
use crate::ops::Activation;
use crate::program::Buf;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes::all() {
        // As many outputs per expert as the shape has, of five experts.
        cases.push(case(
            [shape.dtype; 2],
            (5, 3),
            (shape.n_out.min(20), shape.n_in),
            shape.rows,
            Activation::SiluGlu,
        ));
    }
    for activation in [Activation::SiluGlu, Activation::GeluTanhGlu] {
        cases.push(case([DType::F32; 2], (1, 1), (7, 33), 2, activation));
        cases.push(case([DType::F32; 2], (4, 1), (36, 36), 5, activation));
        cases.push(case([DType::F32; 2], (4, 4), (13, 52), 17, activation));
        cases.push(case([DType::Q4_0, DType::Q8_0], (8, 2), (9, 64), 33, activation));
        cases.push(case([DType::F16, DType::BF16], (60, 3), (5, 40), 3, activation));
        cases.push(case([DType::BF16, DType::Q8_0], (4, 2), (21, 96), 19, activation));
    }
    cases
}

/// Routes to experts that are all different in a row, while the rows share some; the weights come after.
pub(crate) fn random_routes(case: &mut OneOp, experts: usize, top_k: usize) -> Buf {
    let routes = case.builder.buffer("routes", 2 * top_k);
    case.fill_each_step(Place::Buffer(routes), |numbers, rows| {
        let mut values = Vec::new();
        for _ in 0..rows {
            let order = numbers.permutation(experts);
            values.extend(order[..top_k].iter().map(|&expert| expert as f32));
            values.extend(numbers.around(top_k, 0.5, 0.45));
        }
        values
    });
    routes
}

fn case(
    [gate, up]: [DType; 2],
    (experts, top_k): (usize, usize),
    (hidden, width): (usize, usize),
    rows: usize,
    activation: Activation,
) -> Case {
    let mut case = OneOp::with_rows((hidden * width) as u64, rows);
    let normed = case.input(width, 1.0);
    let routes = random_routes(&mut case, experts, top_k);
    let name = format!(
        "{}+{}-{top_k}of{experts}-{hidden}x{width}-rows{rows}-{activation:?}",
        gate.name(),
        up.name()
    );
    let (gate, up) = (case.matrix(gate, experts * hidden, width), case.matrix(up, experts * hidden, width));
    let out = case.output(top_k * hidden);
    let op = MoeGateUp { normed, routes, top_k, experts, gate, up, activation, out };
    // Two sums of about √n / 3 are multiplied.
    case.case(name, op, Tolerance::sum(width, 1.0).times(2.0 + (width as f32).sqrt()))
}
