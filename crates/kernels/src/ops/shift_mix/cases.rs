use super::ShiftMix;
use crate::KvType;
use crate::conformance::data::Piece;
use crate::conformance::one_op::OneOp;
use crate::conformance::{Case, Tolerance};
use crate::ops::NormKind;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (width, mixes) in [(1, 1), (8, 6), (33, 2), (36, 6), (97, 3), (600, 2)] {
        for kind in [NormKind::Layer, NormKind::Rms] {
            for (i, steps) in schedules().into_iter().enumerate() {
                cases.push(case(width, mixes, kind, i, steps));
            }
        }
    }
    cases
}

/// Steps for ops that keep state: one sequence that begins (its slot holds something), one that goes on from what
/// its slot holds, and several that begin and go on in turns over three steps.
pub(crate) fn schedules() -> Vec<Vec<Vec<Piece>>> {
    vec![
        vec![vec![(0, 0, 1)]],
        vec![vec![(0, 0, 33)]],
        vec![vec![(0, 9, 3)]],
        vec![
            vec![(1, 0, 5), (0, 4, 1), (2, 0, 17)],
            vec![(2, 17, 1), (1, 5, 2)],
            vec![(0, 5, 3), (1, 7, 1), (2, 0, 2)],
        ],
    ]
}

/// Two normed rows, each up to about 3, are mixed.
fn case(width: usize, mixes: usize, kind: NormKind, schedule: usize, steps: Vec<Vec<Piece>>) -> Case {
    let mut case = OneOp::with_steps((width + schedule) as u64, KvType::F32, steps);
    let x = case.uneven_input(width);
    let norm = case.norm(kind, width, 1e-5);
    let mix = case.vector(mixes * width, 0.5, 0.5);
    let state = case.recurrent(width, 2.0);
    let out = case.output(mixes * width);
    let op = ShiftMix { x, norm, mix, mixes, state, out };
    case.case(format!("{mixes}x{width}-{kind:?}-schedule{schedule}"), op, Tolerance::roundings(3.0))
}
