use super::Attention;
use crate::KvType;
use crate::conformance::data::Piece;
use crate::conformance::one_op::OneOp;
use crate::conformance::{Case, Tolerance};

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

const SHAPES: [Shape; 6] = [
    Shape { heads: 1, kv_heads: 1, dim: 10 },
    Shape { heads: 3, kv_heads: 1, dim: 12 },
    Shape { heads: 6, kv_heads: 2, dim: 16 },
    Shape { heads: 9, kv_heads: 3, dim: 64 },
    Shape { heads: 2, kv_heads: 2, dim: 80 },
    Shape { heads: 3, kv_heads: 1, dim: 128 },
];

/// What a row sees and how its scores are treated.
#[derive(Clone, Copy)]
struct How {
    window: Option<usize>,
    soft_cap: Option<f32>,
    sinks: bool,
    kv_type: KvType,
}

const PLAIN: How = How { window: None, soft_cap: None, sinks: false, kv_type: KvType::F32 };

/// One token at the start and late, a chunk across block borders, and several sequences at once.
const BATCHES: [&[Piece]; 4] = [
    &[(0, 0, 1)],
    &[(0, 63, 1)],
    &[(0, 13, 21)],
    &[(2, 0, 33), (0, 40, 2), (1, 16, 1), (3, 7, 17), (4, 31, 1), (5, 15, 1)],
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, &shape) in SHAPES.iter().enumerate() {
        for pieces in BATCHES {
            cases.push(case(shape, PLAIN, pieces));
            cases.push(case(shape, How { kv_type: KvType::F16, sinks: true, ..PLAIN }, pieces));
        }
        for window in [1, 5, 16, 17, 1000] {
            let kv_type = if i % 2 == 0 { KvType::F32 } else { KvType::F16 };
            let how = How { window: Some(window), kv_type, ..PLAIN };
            cases.push(case(shape, how, BATCHES[3]));
            let all = How { soft_cap: Some(1.5), sinks: true, ..how };
            cases.push(case(shape, all, BATCHES[3]));
        }
        cases.push(case(shape, How { soft_cap: Some(2.0), ..PLAIN }, BATCHES[2]));
        cases.push(case(shape, How { soft_cap: Some(50.0), window: Some(9), ..PLAIN }, BATCHES[1]));
        // A row, whose few queries read the cache as it is stored, and tiles of many, for which f16 is made f32 first.
        for (pieces, kv_type) in
            [BATCHES[1], BATCHES[3]].into_iter().flat_map(|p| [(p, KvType::F32), (p, KvType::F16)])
        {
            cases.push(extreme(shape, 1e4, false, pieces, kv_type));
            cases.push(extreme(shape, -1e4, false, pieces, kv_type));
            cases.push(extreme(shape, 1e4, true, pieces, kv_type));
        }
    }
    cases
}

/// Scores are about 1, so the weights are as exact as a sum over the head, and the values up to 1 are averaged.
fn case(shape: Shape, how: How, pieces: &[Piece]) -> Case {
    let Shape { heads, kv_heads, dim } = shape;
    let mut case = OneOp::with_steps((heads * dim) as u64, how.kv_type, vec![pieces.to_vec()]);
    let qkv = case.input((heads + 2 * kv_heads) * dim, 1.0);
    let kv = case.filled_kv_layer(kv_heads, dim, 3.0, 1.0);
    let sinks = how.sinks.then(|| case.vector(heads, 1.0, 1.0));
    let out = case.output(heads * dim);
    let scale = 1.0 / (dim as f32).sqrt();
    let How { window, soft_cap, .. } = how;
    let name = format!(
        "{heads}:{kv_heads}x{dim}-window{window:?}-cap{soft_cap:?}-sinks{}-{}-{}pieces-at{}",
        how.sinks,
        how.kv_type.name(),
        pieces.len(),
        pieces[0].1
    );
    let op = Attention { qkv, heads, scale, window, soft_cap, sinks, kv, out };
    case.case(name, op, Tolerance::sum(dim, 3.0 * scale))
}

/// Scores around `score`: of either sign, or, where `level`, the same for every position, so that the result is the
/// mean of the values. An exponential that is not taken relative to the largest score overflows or vanishes.
fn extreme(shape: Shape, score: f32, level: bool, pieces: &[Piece], kv_type: KvType) -> Case {
    let Shape { heads, kv_heads, dim } = shape;
    let mut case = OneOp::with_steps(dim as u64, kv_type, vec![pieces.to_vec()]);
    let width = (heads + 2 * kv_heads) * dim;
    let qkv = case.builder.buffer("input", width);
    case.fill_each_step(crate::Place::Buffer(qkv), |numbers, rows| numbers.around(rows * width, 10.0, 1.0));
    let kv = case.kv_layer(kv_heads, dim);
    let n = case.blocks() * crate::BLOCK * kv_heads * dim;
    // Keys of different length, all along the queries: scores far apart, or all the same.
    let lengths = case.numbers.around(n / dim, 0.5, if level { 0.0 } else { 0.5 });
    let keys = lengths.iter().flat_map(|&length| vec![2.0 * length; dim]).collect();
    let values = case.numbers.signed(n, 1.0);
    case.fill(crate::Place::Keys(kv), keys);
    case.fill(crate::Place::Values(kv), values);
    let out = case.output(heads * dim);
    let scale = score / (10.0 * dim as f32);
    let op = Attention { qkv, heads, scale, window: None, soft_cap: None, sinks: None, kv, out };
    let name = format!(
        "extreme-{heads}:{kv_heads}x{dim}-{score}-level{level}-{}-{}pieces",
        kv_type.name(),
        pieces.len()
    );
    // The largest scores lie further apart than their rounding error (1e4 · 2⁻²⁴ · √dim, under 0.01), yet a close
    // pair may turn that error into as large a share of the values.
    case.case(name, op, if level { Tolerance::sum(64, 1.0) } else { Tolerance { abs: 0.01, rel: 0.0 } })
}
