//! Panels of every float type at every level: against sums in f64, and the same bits for a row alone and among others.
//! Pairs of BF16 are computed everywhere: by a stand-in where the processor has no instruction for them.

use exotherm_tensor::formats;

use super::*;
use crate::conformance::data::Numbers;
use crate::cpu::groups::{FloatRows, GROUP, PairRows, group_rows, room_for};
use crate::cpu::rows::Rows;
use crate::cpu::simd::Scalar;
use crate::rounding::{Rounding, rounded};

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// A matrix in panels.
struct Matrix {
    dtype: DType,
    weights: Vec<f32>,
    panels: Vec<u8>,
    n_in: usize,
    n_out: usize,
}

impl Matrix {
    fn new(dtype: DType, n_out: usize, n_in: usize, numbers: &mut Numbers) -> Matrix {
        let tensor = numbers.tensor(dtype, n_out, n_in, 1.0);
        let rows: Vec<&[u8]> = tensor.bytes().chunks_exact(tensor.row_bytes()).collect();
        let bytes = panel_bytes(dtype, n_in).unwrap();
        // What was there before must not matter.
        let mut panels = vec![0xa5; n_out.div_ceil(WIDTH) * bytes];
        for (rows, panel) in rows.chunks(WIDTH).zip(panels.chunks_exact_mut(bytes)) {
            pack_panel(dtype, rows, n_in, panel);
        }
        Matrix { dtype, weights: tensor.to_f32(), panels, n_in, n_out }
    }

    /// Outputs of whole panels.
    fn padded(&self) -> usize {
        self.n_out.next_multiple_of(WIDTH)
    }

    /// The products with every row, in rows of `stride`; the places between are left as they were.
    fn products(&self, level: Level, x: Rows, stride: usize) -> Vec<f32> {
        let mut out = vec![7.0; (x.len() - 1) * stride + self.padded()];
        let mut groups = vec![f32::NAN; room_for(x.len()) * self.n_in];
        let x = FloatRows::gathered(x, &mut groups);
        let Matrix { dtype, ref panels, n_in, .. } = *self;
        product(level, FloatProduct { dtype, panels, n_in, x, out: &mut out, stride });
        out
    }

    /// The same with activations rounded to BF16, in pairs.
    fn pair_products(&self, level: Level, x: Rows, stride: usize) -> Vec<f32> {
        let mut out = vec![7.0; (x.len() - 1) * stride + self.padded()];
        let words = pairs_of(self.n_in);
        let mut groups = vec![0xa5a5_a5a5; room_for(x.len()) * words];
        for row in 0..x.len() {
            let first = row / GROUP * GROUP;
            let members = group_rows((x.len() - first).min(GROUP));
            to_pairs(
                level,
                x.row(row),
                &mut groups[first * words..][..members * words],
                members,
                row - first,
            );
        }
        let Matrix { dtype, ref panels, n_in, .. } = *self;
        let x = PairRows::new(&groups, words, x.len());
        pair_product(level, FloatProduct { dtype, panels, n_in, x, out: &mut out, stride });
        out
    }

    /// Every sum is as near to the true one as its number of roundings allows.
    fn check_sums(&self, x: &[f32], products: &[f32], what: &str) {
        // A chain of a run, which in pairs is twice as long, the runs' sums, and the product itself where the level rounds
        // it before it is added.
        let roundings = self.n_in.min(2 * RUN) + self.n_in.div_ceil(RUN) + 1;
        for (x, products) in x.chunks(self.n_in).zip(products.chunks(self.padded())) {
            for (i, &have) in products.iter().enumerate() {
                let Some(weights) = self.weights.get(i * self.n_in..).filter(|_| i < self.n_out) else {
                    assert_eq!(have, 0.0, "{what}: row {i} is not in the matrix");
                    continue;
                };
                let (mut want, mut magnitude) = (0.0, 0.0);
                for (&x, &w) in x.iter().zip(weights) {
                    want += f64::from(x) * f64::from(w);
                    magnitude += (f64::from(x) * f64::from(w)).abs();
                }
                let allowed = magnitude * roundings as f64 * f64::from(f32::EPSILON) / 2.0 + 1e-30;
                let error = (f64::from(have) - want).abs();
                assert!(error <= allowed, "{what}: {have} is not {want} ({error:e}, {allowed:e})");
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// One matrix with 1 to 17 rows, at every level.
fn check(matrix: &Matrix, numbers: &mut Numbers) {
    const ROWS: usize = 17;
    let (n_in, padded) = (matrix.n_in, matrix.padded());
    let x = numbers.signed(ROWS * n_in, 1.0);
    for level in Level::available() {
        let what = format!("{} of {n_in} × {} at {}", matrix.dtype, matrix.n_out, level.name());
        let alone = |row: &[f32]| matrix.products(level, Rows::one(row), padded);
        let want: Vec<f32> = x.chunks(n_in).flat_map(alone).collect();
        matrix.check_sums(&x, &want, &what);
        for rows in 1..=ROWS {
            let have = matrix.products(level, Rows::new(&x, n_in, n_in, rows), padded);
            assert_eq!(bits(&have), bits(&want[..rows * padded]), "{what}: {rows} rows");
        }
        let index: Vec<u32> = numbers.permutation(ROWS)[..11].to_vec();
        let have = matrix.products(level, Rows::new(&x, n_in, n_in, ROWS).picked(&index), padded + 3);
        for (have, &row) in have.chunks(padded + 3).zip(&index) {
            assert_eq!(
                bits(&have[..padded]),
                bits(&want[row as usize * padded..][..padded]),
                "{what}: {row} picked"
            );
            assert!(have[padded..].iter().all(|&v| v == 7.0), "{what}: written past the panels");
        }
        if n_in > 2 {
            // A part of wider rows.
            let narrow = Rows::new(&x[1..], n_in, n_in, 5);
            let shifted: Vec<f32> = x[1..][..5 * n_in].chunks(n_in).flat_map(alone).collect();
            assert_eq!(bits(&matrix.products(level, narrow, padded)), bits(&shifted), "{what}: unaligned");
        }
    }
}

#[test]
fn every_width_and_number_of_rows() {
    let mut numbers = Numbers::new(31);
    for dtype in TYPES {
        for n_in in (1..=70).chain([127, 128, 129, 191, 256, 257, 1000]) {
            // From less than one panel to seven, which is a four, a two and a one for a single row and two threes and a one for
            // many.
            let matrix = Matrix::new(dtype, 1 + n_in * 29 % 112, n_in, &mut numbers);
            check(&matrix, &mut numbers);
        }
    }
}

/// Products of pairs are those of rounded activations, and the same bits for a row alone and among others, by the
/// instructions where there are some and by the stand-in.
#[test]
fn pairs_of_every_width_and_number_of_rows() {
    const ROWS: usize = 17;
    let mut numbers = Numbers::new(34);
    for n_in in (1..=70).chain([127, 128, 129, 130, 131, 191, 256, 257, 383, 1000]) {
        let matrix = Matrix::new(DType::BF16, 1 + n_in * 29 % 112, n_in, &mut numbers);
        let (x, padded) = (numbers.signed(ROWS * n_in, 1.0), matrix.padded());
        let with_pairs = Level::available().filter(|level| level.has_pairs());
        for level in with_pairs.chain([Level::ScalarPairs(Scalar)]) {
            let alone = |row: &[f32]| matrix.pair_products(level, Rows::one(row), padded);
            let want: Vec<f32> = x.chunks(n_in).flat_map(alone).collect();
            matrix.check_sums(&rounded(Rounding::Bf16, &x), &want, &format!("pairs of {n_in}"));
            for rows in 1..=ROWS {
                let have = matrix.pair_products(level, Rows::new(&x, n_in, n_in, rows), padded);
                let what = format!("{rows} rows of {n_in} at {}", level.name());
                assert_eq!(bits(&have), bits(&want[..rows * padded]), "{what}");
            }
        }
    }
}

/// The lanes' sums do not lean on each other, and a panel is the same alone and beside others.
#[test]
fn panels_alone_and_together() {
    let mut numbers = Numbers::new(32);
    for dtype in TYPES {
        let matrix = Matrix::new(dtype, 5 * WIDTH, 201, &mut numbers);
        let x = numbers.signed(3 * 201, 1.0);
        for level in Level::available() {
            for rows in [1, 3] {
                let x = Rows::new(&x, 201, 201, rows);
                let together = matrix.products(level, x, matrix.padded());
                let mut groups = vec![f32::NAN; room_for(rows) * 201];
                let x = FloatRows::gathered(x, &mut groups);
                for (i, panels) in matrix.panels.chunks(panel_bytes(dtype, 201).unwrap()).enumerate() {
                    let (mut out, stride) = (vec![0.0; rows * WIDTH], WIDTH);
                    product(level, FloatProduct { dtype, panels, n_in: 201, x, out: &mut out, stride });
                    for (have, want) in out.chunks(WIDTH).zip(together.chunks(matrix.padded())) {
                        assert_eq!(bits(have), bits(&want[i * WIDTH..][..WIDTH]), "{dtype}, panel {i}");
                    }
                }
            }
        }
    }
}

/// Every number of sixteen bits there is, and what a row of a panel becomes at every level.
#[test]
fn packing_keeps_every_value() {
    for dtype in [DType::F16, DType::BF16] {
        let n_in = (1 << 16) / WIDTH;
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let rows: Vec<&[u8]> = bytes.chunks_exact(2 * n_in).collect();
        let mut panel = vec![0; panel_bytes(dtype, n_in).unwrap()];
        pack_panel(dtype, &rows, n_in, &mut panel);
        let (mut want, mut have) = (vec![0.0; n_in], vec![1.0; n_in]);
        for (lane, row) in rows.iter().enumerate() {
            formats::decode(dtype, row, &mut want);
            decode_panel_row(dtype, &panel, lane, n_in, &mut have);
            assert_eq!(bits(&have), bits(&want), "{dtype}, row {lane}");
        }
    }
}

#[test]
fn packing_of_odd_widths_and_missing_rows() {
    let mut numbers = Numbers::new(33);
    for dtype in TYPES {
        for (n_out, n_in) in [(1, 1), (3, 7), (16, 65), (19, 2), (40, 33)] {
            let matrix = Matrix::new(dtype, n_out, n_in, &mut numbers);
            let bytes = panel_bytes(dtype, n_in).unwrap();
            for row in 0..matrix.padded() {
                let mut have = vec![1.0; n_in];
                decode_panel_row(dtype, &matrix.panels[row / WIDTH * bytes..], row % WIDTH, n_in, &mut have);
                let want = matrix.weights.chunks(n_in).nth(row).map_or(vec![0.0; n_in], <[f32]>::to_vec);
                assert_eq!(bits(&have), bits(&want), "{dtype} of {n_in} × {n_out}, row {row}");
            }
        }
    }
}

#[test]
fn sizes_of_panels() {
    assert_eq!(panel_bytes(DType::F32, 3), Some(4 * 64));
    assert_eq!(panel_bytes(DType::F16, 64), Some(64 * 32));
    assert_eq!(panel_bytes(DType::F16, 65), Some(66 * 32));
    assert_eq!(panel_bytes(DType::BF16, 65), Some(68 * 32));
    assert_eq!(panel_bytes(DType::F16, usize::MAX), None);
    assert_eq!(panel_bytes(DType::BF16, usize::MAX / 16), None);
    for dtype in DType::all().filter(|t| t.is_quantized()) {
        assert_eq!(panel_bytes(dtype, 256), None, "{dtype}");
    }
}
