use super::TimeMix;
use crate::conformance::data::Piece;
use crate::conformance::one_op::OneOp;
use crate::conformance::{Case, Tolerance};
use crate::ops::NormKind;
use crate::ops::shift_mix::cases::schedules;
use crate::{KvType, Place};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (heads, size) in [(1, 8), (3, 8), (2, 16), (5, 12), (2, 64)] {
        for is_first_layer in [true, false] {
            for (i, steps) in schedules().into_iter().enumerate() {
                cases.push(case(heads, size, is_first_layer, i, steps));
            }
        }
    }
    cases.push(case(1, 1, true, 0, vec![vec![(0, 0, 2)]]));
    cases
}

/// The state's rows and the group norm are sums over a head of values up to about 1; a sequence of tens of rows
/// adds their errors up while the decay forgets them again, and the norm divides by a deviation of about 1.
fn case(heads: usize, size: usize, is_first_layer: bool, schedule: usize, steps: Vec<Vec<Piece>>) -> Case {
    let width = heads * size;
    let mut case = OneOp::with_steps((width + schedule) as u64, KvType::F32, steps);
    let rkv = case.input(3 * width, 1.0);
    let parts = if is_first_layer { 3 } else { 4 };
    let wagv = case.builder.buffer("wagv", parts * width);
    case.fill_each_step(Place::Buffer(wagv), |numbers, rows| {
        let mut values = Vec::new();
        for _ in 0..rows {
            values.extend(numbers.signed(width, 4.0));
            // The in-context rate and the value mix come from a sigmoid.
            values.extend(numbers.around(width, 0.5, 0.5));
            values.extend(numbers.signed(width, 1.0));
            values.extend(numbers.around((parts - 3) * width, 0.5, 0.5));
        }
        values
    });
    let v_first = if is_first_layer { case.output(width) } else { case.input(width, 1.0) };
    let (k_k, k_a, r_k) =
        (case.vector(width, 0.8, 0.3), case.vector(width, 0.9, 0.4), case.vector(width, 0.0, 0.5));
    // The epsilon of RWKV-7's group norm is 64e-5.
    let norm = case.norm(NormKind::Layer, width, 64e-5);
    let state = case.recurrent(heads * size * size, 0.5);
    let out = case.output(width);
    let op = TimeMix { rkv, wagv, v_first, is_first_layer, k_k, k_a, r_k, norm, heads, state, out };
    let name = format!("{heads}x{size}-first{is_first_layer}-schedule{schedule}");
    case.case(name, op, Tolerance::sum(size, 1.0).times(4.0))
}
