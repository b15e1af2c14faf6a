use super::{QkRopeWrite, Rope, RopeStyle};
use crate::conformance::data::Piece;
use crate::conformance::one_op::OneOp;
use crate::conformance::{Case, Tolerance};
use crate::ops::NormKind;
use crate::{KvType, Place};

struct Heads {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// Elements of a head that are rotated.
    rotated: usize,
}

const HEADS: [Heads; 8] = [
    Heads { heads: 1, kv_heads: 1, dim: 10, rotated: 10 },
    Heads { heads: 3, kv_heads: 1, dim: 12, rotated: 12 },
    Heads { heads: 6, kv_heads: 2, dim: 16, rotated: 10 },
    Heads { heads: 9, kv_heads: 3, dim: 64, rotated: 64 },
    Heads { heads: 2, kv_heads: 2, dim: 80, rotated: 32 },
    Heads { heads: 3, kv_heads: 1, dim: 128, rotated: 128 },
    Heads { heads: 4, kv_heads: 2, dim: 2, rotated: 2 },
    Heads { heads: 1, kv_heads: 1, dim: 1, rotated: 0 },
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let batches: [&[Piece]; 3] =
        [&[(0, 0, 1)], &[(0, 5, 3)], &[(2, 0, 33), (0, 15, 2), (1, 31, 1), (3, 7, 17)]];
    for (i, heads) in HEADS.iter().enumerate() {
        for (j, pieces) in batches.iter().enumerate() {
            for style in [RopeStyle::Halves, RopeStyle::Pairs] {
                let kv_type = if (i + j) % 2 == 0 { KvType::F32 } else { KvType::F16 };
                cases.push(case(heads, pieces, Some(style), kv_type, [None, None]));
                cases.push(case(heads, pieces, Some(style), kv_type, [Some(NormKind::Rms); 2]));
            }
        }
        let norms = [Some(NormKind::Rms), None];
        cases.push(case(heads, batches[2], None, KvType::F16, [None, None]));
        cases.push(case(heads, batches[2], None, KvType::F32, norms));
        cases.push(case(
            heads,
            batches[1],
            Some(RopeStyle::Pairs),
            KvType::F32,
            [None, Some(NormKind::Layer)],
        ));
    }
    cases
}

/// A rotation is a sum of two products of values up to 2; a norm before it multiplies values up to about 2 by
/// weights up to 1.5, and its mean of squares rounds like a short sum.
fn case(
    heads: &Heads,
    pieces: &[Piece],
    style: Option<RopeStyle>,
    kv_type: KvType,
    norms: [Option<NormKind>; 2],
) -> Case {
    let &Heads { heads, kv_heads, dim, rotated } = heads;
    let mut case = OneOp::with_steps((heads * dim) as u64, kv_type, vec![pieces.to_vec()]);
    let width = (heads + 2 * kv_heads) * dim;
    let qkv = if norms == [None, None] { case.input(width, 1.0) } else { case.uneven_input(width) };
    let rope = style.filter(|_| rotated > 0).map(|style| {
        let table = case.builder.buffer("rope", rotated);
        // Any numbers do; real tables are tested with the op that makes them.
        case.fill_each_step(Place::Buffer(table), |numbers, rows| numbers.signed(rows * rotated, 1.2));
        Rope { table, style }
    });
    let [q_norm, k_norm] = norms.map(|kind| kind.map(|kind| case.norm(kind, dim, 1e-6)));
    let kv = case.kv_layer(kv_heads, dim);
    let name = format!(
        "{heads}:{kv_heads}x{dim}-{style:?}{rotated}-{norms:?}-{}-{}pieces-at{}",
        kv_type.name(),
        pieces.len(),
        pieces[0].1
    );
    // Without a norm on its side, the uneven input goes up to 42 as it is.
    let uneven = norms != [None, None] && norms.contains(&None);
    let tolerance = Tolerance::sum(4, if uneven { 42.0 } else { 2.0 });
    case.case(name, QkRopeWrite { qkv, q_norm, k_norm, rope, heads, kv }, tolerance)
}
