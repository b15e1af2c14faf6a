//! How a panel's weights lie in memory: pair of columns after pair of columns, filled up with zeros.

use exotherm_tensor::{DType, formats};

use crate::cpu::simd::{Isa, WIDTH};

/// Two columns of sixteen weights in `BYTES` bytes, and what they are multiplied with.
pub(super) trait Layout<const BYTES: usize> {
    /// An activation.
    type X: Copy;

    /// The weights of the first column and of the second, lane for lane.
    fn columns<I: Isa>(isa: I, pair: &[u8; BYTES]) -> [I::V; 2];

    /// An activation in all lanes.
    fn splat<I: Isa>(isa: I, x: Self::X) -> I::V;

    /// Adds the products of a column with an activation.
    fn add<I: Isa>(isa: I, column: I::V, x: I::V, sums: I::V) -> I::V;
}

/// Of one weight in a lane and one float.
macro_rules! one_by_one {
    () => {
        type X = f32;

        #[inline(always)]
        fn splat<I: Isa>(isa: I, x: f32) -> I::V {
            isa.splat(x)
        }

        #[inline(always)]
        fn add<I: Isa>(isa: I, column: I::V, x: I::V, sums: I::V) -> I::V {
            isa.fma(column, x, sums)
        }
    };
}

/// One column after the other.
pub(super) struct F32;

impl Layout<128> for F32 {
    one_by_one!();

    #[inline(always)]
    fn columns<I: Isa>(isa: I, pair: &[u8; 128]) -> [I::V; 2] {
        let (words, _) = pair.as_chunks::<4>();
        let mut columns = [[0.0; WIDTH]; 2];
        for lane in 0..WIDTH {
            columns[0][lane] = f32::from_le_bytes(words[lane]);
            columns[1][lane] = f32::from_le_bytes(words[WIDTH + lane]);
        }
        [isa.load(&columns[0]), isa.load(&columns[1])]
    }
}

/// One column after the other.
pub(super) struct F16;

impl Layout<64> for F16 {
    one_by_one!();

    #[inline(always)]
    fn columns<I: Isa>(isa: I, pair: &[u8; 64]) -> [I::V; 2] {
        let (halves, _) = pair.as_chunks::<2>();
        let mut columns = [[0; WIDTH]; 2];
        for lane in 0..WIDTH {
            columns[0][lane] = u16::from_le_bytes(halves[lane]);
            columns[1][lane] = u16::from_le_bytes(halves[WIDTH + lane]);
        }
        [isa.halves_to_floats(&columns[0]), isa.halves_to_floats(&columns[1])]
    }
}

/// Lane after lane, the two columns' weights of a lane side by side: a shift and a mask make floats of a whole
/// register, and instructions for products of pairs of BF16 want them so, too.
pub(super) struct BF16;

impl Layout<64> for BF16 {
    one_by_one!();

    #[inline(always)]
    fn columns<I: Isa>(isa: I, pair: &[u8; 64]) -> [I::V; 2] {
        let (words, _) = pair.as_chunks::<4>();
        let mut pairs = [0; WIDTH];
        for lane in 0..WIDTH {
            pairs[lane] = u32::from_le_bytes(words[lane]);
        }
        isa.bf16_pairs_to_floats(&pairs)
    }
}

/// The same, but a pair of weights and a pair of activations are multiplied at once: what is a column here is two.
pub(super) struct BF16Pairs;

impl Layout<128> for BF16Pairs {
    type X = u32;

    #[inline(always)]
    fn columns<I: Isa>(isa: I, pair: &[u8; 128]) -> [I::V; 2] {
        // The bits of a register, whatever they mean.
        F32::columns(isa, pair)
    }

    #[inline(always)]
    fn splat<I: Isa>(isa: I, x: u32) -> I::V {
        isa.splat(f32::from_bits(x))
    }

    #[inline(always)]
    fn add<I: Isa>(isa: I, column: I::V, x: I::V, sums: I::V) -> I::V {
        isa.dot_bf16_pairs(column, x, sums)
    }
}

/// Bytes of an element, for the types that lie in panels of this kind.
fn element_bytes(dtype: DType) -> Option<usize> {
    (!dtype.is_quantized()).then(|| dtype.block_bytes())
}

/// Bytes of a panel of rows of this width, or nothing where another type is asked for or there are too many.
pub(in crate::cpu) fn panel_bytes(dtype: DType, n_in: usize) -> Option<usize> {
    n_in.checked_next_multiple_of(filled_up_to(dtype))?.checked_mul(WIDTH * element_bytes(dtype)?)
}

/// The columns of a panel are a multiple of this many.
fn filled_up_to(dtype: DType) -> usize {
    // Two columns of pairs.
    if dtype == DType::BF16 { 4 } else { 2 }
}

/// Where the element of a column and a lane is, counted in elements.
fn place(dtype: DType, column: usize, lane: usize) -> usize {
    match dtype {
        DType::BF16 => (column / 2 * WIDTH + lane) * 2 + column % 2,
        _ => column * WIDTH + lane,
    }
}

/// Makes a panel of up to sixteen rows of a file's bytes. The rows that are missing become zeros.
pub(in crate::cpu) fn pack_panel(dtype: DType, rows: &[&[u8]], n_in: usize, out: &mut [u8]) {
    match element_bytes(dtype) {
        Some(4) => pack::<4>(dtype, rows, n_in, out),
        Some(2) => pack::<2>(dtype, rows, n_in, out),
        _ => unreachable!("{dtype} has panels of its own"),
    }
}

fn pack<const BYTES: usize>(dtype: DType, rows: &[&[u8]], n_in: usize, out: &mut [u8]) {
    assert!(rows.len() <= WIDTH, "a panel has {WIDTH} rows");
    let (out, _) = out.as_chunks_mut::<BYTES>();
    let out = &mut out[..n_in.next_multiple_of(filled_up_to(dtype)) * WIDTH];
    out.fill([0; BYTES]);
    for (lane, row) in rows.iter().enumerate() {
        let (row, _) = row.as_chunks::<BYTES>();
        for (column, element) in row[..n_in].iter().enumerate() {
            out[place(dtype, column, lane)] = *element;
        }
    }
}

/// The floats of one row of a panel.
pub(in crate::cpu) fn decode_panel_row(
    dtype: DType,
    panel: &[u8],
    row_in_panel: usize,
    n_in: usize,
    out: &mut [f32],
) {
    assert!(row_in_panel < WIDTH, "a panel has {WIDTH} rows");
    let bytes = element_bytes(dtype).expect("other types have panels of their own");
    for (column, value) in out[..n_in].iter_mut().enumerate() {
        let element = &panel[place(dtype, column, row_in_panel) * bytes..][..bytes];
        formats::decode(dtype, element, std::slice::from_mut(value));
    }
}
