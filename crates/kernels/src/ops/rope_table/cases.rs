use super::RopeTable;
use crate::conformance::data::Piece;
use crate::conformance::one_op::OneOp;
use crate::conformance::{Case, Tolerance};
use crate::{Buf, KvType};

pub(crate) fn cases() -> Vec<Case> {
    let ends = [0, 1, 17, 4_095, 32_767, 131_071];
    let mut cases: Vec<Case> = ends.into_iter().map(|end| case(&[(0, end, 1)], 64, 1e4, 1.0)).collect();
    cases.push(case(&[(0, 0, 33)], 12, 1e4, 1.0));
    for dims in [2, 10, 80, 128] {
        let pieces = [(0, 131_069, 3), (1, 0, 5), (2, 777, 17)];
        cases.push(case(&pieces, dims, 5e5, 1.0));
        cases.push(case(&pieces, dims, 1e6, 1.2079));
    }
    cases
}

/// The angle is one rounded product, the same everywhere. Its cosine is as good as the range reduction: f32
/// results of f64 work round once; three roundings are allowed.
fn case(pieces: &[Piece], dims: usize, base: f32, magnitude: f32) -> Case {
    let mut case = OneOp::with_steps(dims as u64, KvType::F32, vec![pieces.to_vec()]);
    let frequency = |i: usize| base.powf(-((2 * i) as f32) / dims as f32);
    let inv_freq = case.builder.vector((0..dims / 2).map(frequency).collect());
    let out: Buf = case.output(dims);
    let name = format!("dims{dims}-base{base}-magnitude{magnitude}-at{}", pieces[0].1);
    case.case(name, RopeTable { inv_freq, magnitude, out }, Tolerance { abs: 2e-7 * magnitude, rel: 2e-7 })
}
