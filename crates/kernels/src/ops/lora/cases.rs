use exotherm_tensor::DType;

use super::{Lora, LoraPair};
use crate::conformance::one_op::OneOp;
use crate::conformance::shapes;
use crate::conformance::{Case, Tolerance};
use crate::ops::Activation;

/// A pair: where its input begins, the types of down and up, the width between them, activations, and the bias.
type Pair = (usize, [DType; 2], usize, [Activation; 2], bool);

const F32: [DType; 2] = [DType::F32; 2];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes::one_per_type() {
        let rank = shape.dtype.block_len().max(5);
        let pair = (0, [shape.dtype; 2], rank, [Activation::Tanh, Activation::None], true);
        cases.push(case(&shape.name(), shape.n_in, shape.n_out, &[pair], 3));
    }
    for (middle, out) in [
        (Activation::None, Activation::Sigmoid),
        (Activation::Sigmoid, Activation::None),
        (Activation::Tanh, Activation::None),
        (Activation::GeluTanh, Activation::Tanh),
        (Activation::GeluErf, Activation::SquaredRelu),
    ] {
        for bias in [true, false] {
            let pairs = [(3, F32, 7, [middle, out], bias)];
            cases.push(case(&format!("{middle:?}-{out:?}-bias{bias}"), 33, 36, &pairs, 5));
        }
    }
    for (width, rows) in [(8, 1), (52, 2), (97, 17), (36, 33)] {
        cases.push(case(&format!("layer-{width}-rows{rows}"), width, width, &layer(width), rows));
    }
    cases
}

/// The four pairs of an RWKV-7 layer.
fn layer(width: usize) -> [Pair; 4] {
    [
        (width, F32, 5, [Activation::Tanh, Activation::None], true),
        (3 * width, [DType::F16; 2], 9, [Activation::None, Activation::Sigmoid], true),
        (4 * width, [DType::BF16; 2], 33, [Activation::Sigmoid, Activation::None], false),
        (2 * width, F32, 1, [Activation::None, Activation::Sigmoid], true),
    ]
}

/// A sum of sums: the error of the middle, which is about √n, goes through `up` once more.
fn case(name: &str, n_in: usize, n_out: usize, pairs: &[Pair], rows: usize) -> Case {
    let mut case = OneOp::with_rows((n_in * rows) as u64, rows);
    let x = case.input(pairs.iter().map(|p| p.0).max().unwrap_or(0) + n_in, 1.0);
    let rank = pairs.iter().map(|p| p.2).max().unwrap_or(0);
    let mut recorded = Vec::new();
    for &(x_at, [down, up], rank, [middle, out], bias) in pairs {
        let (down, up) = (case.matrix(down, rank, n_in), case.matrix(up, n_out, rank));
        let bias = bias.then(|| case.vector(n_out, 0.0, 1.0));
        recorded.push(LoraPair { x_at, down, middle, up, bias, out });
    }
    let out = case.output(pairs.len() * n_out);
    let middle = Tolerance::sum(n_in, 1.0);
    let squared = pairs.iter().any(|p| p.3[1] == Activation::SquaredRelu);
    let through = (rank as f32).sqrt() * if squared { 2.0 * (n_in * rank) as f32 / 9.0 } else { 1.0 };
    let saturating = pairs.iter().all(|p| p.3[0] != Activation::GeluErf && p.3[0] != Activation::None);
    let own = Tolerance::sum(rank, if saturating { 1.0 } else { (n_in as f32).sqrt() });
    let tolerance = Tolerance { abs: middle.abs * through + own.abs, rel: middle.rel };
    case.case(name, Lora { x, pairs: recorded, out }, tolerance)
}
