//! Panels of quantized weights times rows of integers.
//!
//! Defined once: for every unit in order, the sum of the products of codes and integers, less the middle of the codes
//! times the sum of the integers, is exact; times `s · d` it is added to the output (rounded once), then, where the
//! format has an `o`, `o` times `d` · the sum of the integers. A unit with groups of 16 is two such halves. So all
//! levels and any number of rows give the same bits.

#![expect(clippy::needless_range_loop, reason = "loops over registers are plain, so that they are unrolled")]

use exotherm_tensor::DType;

use super::groups::GROUP;
use super::integers::{HALF_SCALED_SUMS, HALF_SUMS, IntRows, LINES, SCALE, SCALED_SUM, SUM, UnitOf};
use super::simd::{ByteIsa, ByteKernel, Isa, Level, WIDTH, prefetch, prefetch_far};
use crate::layout::{Layout, Scales};

/// Panels of weights, all of one type, and where their products go.
pub(super) struct PanelProduct<'a> {
    pub dtype: DType,
    /// One panel after another.
    pub panels: &'a [u8],
    pub x: IntRows<'a>,
    /// The product of output `c` and row `r` goes to `out[r * stride + c]`.
    pub out: &'a mut [f32],
    pub stride: usize,
    /// Outputs of the first panel that are left out, and how many follow that are wanted.
    pub skip: usize,
    pub columns: usize,
}

impl PanelProduct<'_> {
    pub fn run(self, level: Level) {
        match self.dtype {
            DType::F32 | DType::F16 | DType::BF16 => unreachable!("float types have no such panels"),
            DType::Q8_0 => level.run_bytes(Typed::<{ DType::Q8_0 as u8 }>(self)),
            DType::Q4_0 => level.run_bytes(Typed::<{ DType::Q4_0 as u8 }>(self)),
            DType::Q4_1 => level.run_bytes(Typed::<{ DType::Q4_1 as u8 }>(self)),
            DType::Q5_0 => level.run_bytes(Typed::<{ DType::Q5_0 as u8 }>(self)),
            DType::Q5_1 => level.run_bytes(Typed::<{ DType::Q5_1 as u8 }>(self)),
            DType::Q2K => level.run_bytes(Typed::<{ DType::Q2K as u8 }>(self)),
            DType::Q3K => level.run_bytes(Typed::<{ DType::Q3K as u8 }>(self)),
            DType::Q4K => level.run_bytes(Typed::<{ DType::Q4K as u8 }>(self)),
            DType::Q5K => level.run_bytes(Typed::<{ DType::Q5K as u8 }>(self)),
            DType::Q6K => level.run_bytes(Typed::<{ DType::Q6K as u8 }>(self)),
        }
    }
}

/// A product with weights of the type of this number.
struct Typed<'a, const T: u8>(PanelProduct<'a>);

/// The layout of the type of this number.
struct Of<const T: u8>;

impl<const T: u8> Of<T> {
    const LAYOUT: Layout = match layout(T) {
        Some(layout) => layout,
        None => panic!("float types have no such panels"),
    };
}

const fn layout(number: u8) -> Option<Layout> {
    const QUANTIZED: [DType; 10] = [
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q2K,
        DType::Q3K,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
    ];
    let mut i = 0;
    while i < QUANTIZED.len() {
        if QUANTIZED[i] as u8 == number {
            return Layout::of(QUANTIZED[i]);
        }
        i += 1;
    }
    None
}

impl<const T: u8> ByteKernel for Typed<'_, T> {
    #[inline(always)]
    fn run<I: ByteIsa>(self, isa: I) {
        let p = self.0;
        let panel_bytes = const { Of::<T>::LAYOUT }.panel_bytes(p.x.width()).expect("the weights are there");
        let (mut skip, mut column) = (p.skip, 0);
        for panel in 0..p.panels.len() / panel_bytes {
            let panel = &p.panels[panel * panel_bytes..(panel + 1) * panel_bytes];
            let n = (WIDTH - skip).min(p.columns - column);
            let mut row = 0;
            while row < p.x.len() {
                let (group, used) = p.x.group(row);
                let last = row + GROUP >= p.x.len();
                let out = &mut p.out[row * p.stride + column..];
                let place = Place { out, stride: p.stride, skip, n, used, last };
                match used {
                    1 => rows::<I, T, 1, 1>(isa, panel, group, 0, place),
                    2..=4 => rows::<I, T, 4, 4>(isa, panel, group, 0, place),
                    _ if I::Floats::MANY_REGISTERS => rows::<I, T, GROUP, GROUP>(isa, panel, group, 0, place),
                    _ => {
                        let Place { out, stride, skip, n, used, last } = place;
                        let first = Place { out: &mut *out, used: 4, last: false, ..place };
                        rows::<I, T, GROUP, 4>(isa, panel, group, 0, first);
                        let out = &mut out[4 * stride..];
                        let second = Place { out, stride, skip, n, used: used - 4, last };
                        rows::<I, T, GROUP, 4>(isa, panel, group, 4, second);
                    }
                }
                row += GROUP;
            }
            (skip, column) = (0, column + n);
        }
    }
}

/// Where the products of a panel with a group of rows go: of each of the first `used` rows `n` after `skip`.
struct Place<'a> {
    out: &'a mut [f32],
    stride: usize,
    skip: usize,
    n: usize,
    used: usize,
    /// Whether no more rows meet the panel.
    last: bool,
}

/// A panel times `N` rows, the `first` and those after it, of a group of `R`.
#[inline(always)]
fn rows<I: ByteIsa, const T: u8, const R: usize, const N: usize>(
    isa: I,
    panel: &[u8],
    group: &[u32],
    first: usize,
    place: Place,
) {
    let f = isa.floats();
    let (span_units, span_bytes) = const { (Of::<T>::LAYOUT.span(), Of::<T>::LAYOUT.span_bytes()) };
    let (head_bytes, scale_bytes) = const { (Of::<T>::LAYOUT.head_bytes(), Of::<T>::LAYOUT.scale_bytes()) };
    let unit_bytes = const { Of::<T>::LAYOUT.unit_bytes() };
    let units = group.as_chunks::<R>().0.as_chunks::<LINES>().0;
    let mut acc = [f.zero(); N];
    // Indices, because iterators over pieces are calls where the compiler does not inline them, and a call empties all
    // vector registers.
    for s in 0..panel.len() / span_bytes {
        let (head, weights) = panel[s * span_bytes..(s + 1) * span_bytes].split_at(head_bytes);
        let head = head_of::<I, T>(isa, head);
        for u in 0..span_units {
            let (unit, x) = (&weights[u * unit_bytes..(u + 1) * unit_bytes], &units[s * span_units + u]);
            if N == 1 {
                // One row waits for memory: it asks for what comes later, in two steps.
                ask_in_two_steps(unit.as_ptr(), unit_bytes);
            } else if place.last {
                // Many rows read a panel again and again; the last to do so ask for the next one.
                ask(unit.as_ptr().wrapping_add(panel.len()), unit_bytes);
            }
            let (scales, planes) = unit.split_at(scale_bytes);
            let codes = codes_of::<I, T>(isa, planes);
            let [s, o] = scales_of::<I, T>(isa, head, scales, 0);
            if const { Of::<T>::LAYOUT.halves() } {
                add_half::<I, T, R, N>(
                    isa,
                    [codes[0], codes[1], codes[2], codes[3]],
                    [s, o],
                    x,
                    first,
                    0,
                    &mut acc,
                );
                let so = scales_of::<I, T>(isa, head, scales, 1);
                add_half::<I, T, R, N>(
                    isa,
                    [codes[4], codes[5], codes[6], codes[7]],
                    so,
                    x,
                    first,
                    1,
                    &mut acc,
                );
            } else {
                add_unit::<I, T, R, N>(isa, codes, [s, o], x, first, &mut acc);
            }
        }
    }
    for r in 0..N.min(place.used) {
        let to = &mut place.out[r * place.stride..];
        if place.n == WIDTH {
            f.store_at(acc[r], &mut to[..WIDTH], 0);
        } else {
            let mut products = [0.0; WIDTH];
            f.store(acc[r], &mut products);
            to[..place.n].copy_from_slice(&products[place.skip..place.skip + place.n]);
        }
    }
}

#[inline(always)]
fn ask(at: *const u8, bytes: usize) {
    let mut line = 0;
    while line < bytes {
        prefetch(at.wrapping_add(line));
        line += 64;
    }
}

#[inline(always)]
fn ask_in_two_steps(at: *const u8, bytes: usize) {
    let mut line = 0;
    while line < bytes {
        prefetch_far(at.wrapping_add(FAR + line));
        prefetch(at.wrapping_add(NEAR + line));
        line += 64;
    }
}

/// How far ahead a single row asks for weights in the second-level cache and in the first, in bytes.
const FAR: usize = 5 << 10;
const NEAR: usize = 1536;

type Vector<I> = <<I as ByteIsa>::Floats as Isa>::V;

/// Adds the products of a unit to the sums of every row.
#[inline(always)]
fn add_unit<I: ByteIsa, const T: u8, const R: usize, const N: usize>(
    isa: I,
    codes: [I::Bytes; 8],
    [s, o]: [Vector<I>; 2],
    x: &UnitOf<R>,
    first: usize,
    acc: &mut [Vector<I>; N],
) {
    let (layout, f) = (Of::<T>::LAYOUT, isa.floats());
    let mut sums = [isa.splat_sum(0); N];
    for r in 0..N {
        sums[r] = start::<I, T>(isa, x[SUM][first + r]);
    }
    for k in 0..8 {
        for r in 0..N {
            sums[r] = dot::<I, T>(isa, sums[r], codes[k], x[k][first + r]);
        }
    }
    for r in 0..N {
        let scale = f.mul(s, f.splat(f32::from_bits(x[SCALE][first + r])));
        acc[r] = isa.fused(isa.sums_to_floats(sums[r]), scale, acc[r]);
        if layout.middle == 0 {
            acc[r] = isa.fused(o, f.splat(f32::from_bits(x[SCALED_SUM][first + r])), acc[r]);
        }
    }
}

/// The same for half a unit.
#[inline(always)]
fn add_half<I: ByteIsa, const T: u8, const R: usize, const N: usize>(
    isa: I,
    codes: [I::Bytes; 4],
    [s, o]: [Vector<I>; 2],
    x: &UnitOf<R>,
    first: usize,
    half: usize,
    acc: &mut [Vector<I>; N],
) {
    let (layout, f) = (Of::<T>::LAYOUT, isa.floats());
    let mut sums = [isa.splat_sum(0); N];
    for r in 0..N {
        sums[r] = start::<I, T>(isa, x[HALF_SUMS + half][first + r]);
    }
    for k in 0..4 {
        for r in 0..N {
            sums[r] = dot::<I, T>(isa, sums[r], codes[k], x[4 * half + k][first + r]);
        }
    }
    for r in 0..N {
        let scale = f.mul(s, f.splat(f32::from_bits(x[SCALE][first + r])));
        acc[r] = isa.fused(isa.sums_to_floats(sums[r]), scale, acc[r]);
        if layout.middle == 0 {
            acc[r] = isa.fused(o, f.splat(f32::from_bits(x[HALF_SCALED_SUMS + half][first + r])), acc[r]);
        }
    }
}

#[inline(always)]
fn dot<I: ByteIsa, const T: u8>(isa: I, sums: I::Sums, codes: I::Bytes, x: u32) -> I::Sums {
    if Of::<T>::LAYOUT.bytes { isa.dot::<true>(sums, codes, x) } else { isa.dot::<false>(sums, codes, x) }
}

/// −middle · the sum of the integers, of which `x` is eight times the negative.
#[inline(always)]
fn start<I: ByteIsa, const T: u8>(isa: I, x: u32) -> I::Sums {
    let x = x as i32;
    match Of::<T>::LAYOUT.middle {
        0 => isa.splat_sum(0),
        4 => isa.splat_sum(x >> 1),
        8 => isa.splat_sum(x),
        16 => isa.splat_sum(x << 1),
        32 => isa.splat_sum(x << 2),
        128 => isa.splat_sum(x << 4),
        _ => unreachable!("no format has another middle"),
    }
}

/// `d` and `d_min` of the rows.
#[inline(always)]
fn head_of<I: ByteIsa, const T: u8>(isa: I, head: &[u8]) -> [Vector<I>; 2] {
    let zero = isa.floats().zero();
    match Of::<T>::LAYOUT.scales {
        Scales::Symmetric | Scales::Affine => [zero; 2],
        Scales::Grouped | Scales::HalfGrouped => [halves(isa, head, 0), halves(isa, head, 1)],
        Scales::HalfSymmetric => [halves(isa, head, 0), zero],
    }
}

/// The rows' `s` and `o` of a unit or a half of it; `o` is nothing where the format has a middle.
#[inline(always)]
fn scales_of<I: ByteIsa, const T: u8>(
    isa: I,
    head: [Vector<I>; 2],
    scales: &[u8],
    half: usize,
) -> [Vector<I>; 2] {
    let f = isa.floats();
    match Of::<T>::LAYOUT.scales {
        Scales::Symmetric => [halves(isa, scales, 0), f.zero()],
        Scales::Affine => [halves(isa, scales, 0), halves(isa, scales, 1)],
        Scales::Grouped => {
            let (scale, min) = (byte_values(isa, scales, 0), byte_values(isa, scales, 1));
            [f.mul(head[0], scale), f.mul(f.mul(head[1], min), f.splat(-1.0))]
        }
        Scales::HalfGrouped => {
            let bytes: &[u8; WIDTH] = scales.as_chunks().0[half..].first().expect("both halves have scales");
            let (mut low, mut high) = ([0; WIDTH], [0; WIDTH]);
            for i in 0..WIDTH {
                (low[i], high[i]) = (bytes[i] & 15, bytes[i] >> 4);
            }
            let (scale, min) = (f.i8s_to_floats(&low), f.i8s_to_floats(&high));
            [f.mul(head[0], scale), f.mul(f.mul(head[1], min), f.splat(-1.0))]
        }
        Scales::HalfSymmetric => [f.mul(head[0], byte_values(isa, scales, half)), f.zero()],
    }
}

#[inline(always)]
fn byte_values<I: ByteIsa>(isa: I, scales: &[u8], which: usize) -> Vector<I> {
    isa.floats().i8s_to_floats(scales[which * WIDTH..].first_chunk().expect("a scale for every row"))
}

#[inline(always)]
fn halves<I: ByteIsa>(isa: I, scales: &[u8], which: usize) -> Vector<I> {
    let bytes: &[u8; 2 * WIDTH] = scales[which * 2 * WIDTH..].first_chunk().expect("a scale for every row");
    let mut bits = [0; WIDTH];
    for i in 0..WIDTH {
        bits[i] = u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
    }
    isa.floats().halves_to_floats(&bits)
}

/// The eight quads of codes of a unit.
#[inline(always)]
fn codes_of<I: ByteIsa, const T: u8>(isa: I, planes: &[u8]) -> [I::Bytes; 8] {
    let layout = Of::<T>::LAYOUT;
    let vectors = planes.as_chunks::<{ 4 * WIDTH }>().0;
    let (mut codes, mut next) = ([isa.load_bytes(&vectors[0]); 8], 0);
    if layout.bytes {
        for k in 0..8 {
            codes[k] = isa.load_bytes(&vectors[k]);
        }
    }
    if layout.nibbles {
        for j in 0..4 {
            let both = isa.load_bytes(&vectors[j]);
            codes[j] = isa.field(both, 0, 15);
            codes[4 + j] = isa.field(both, 4, 15);
        }
        next = 4;
    }
    if layout.pairs {
        for v in 0..2 {
            let four = isa.load_bytes(&vectors[next + v]);
            for k in 0..4 {
                codes[4 * v + k] = match layout.nibbles {
                    true => isa.or(codes[4 * v + k], isa.field(four, 2 * k as i32 - 4, 0x30)),
                    false => isa.field(four, 2 * k as i32, 3),
                };
            }
        }
        next += 2;
    }
    if layout.bits {
        let eight = isa.load_bytes(&vectors[next]);
        let place = if layout.nibbles { 4 } else { 2 };
        for k in 0..8 {
            codes[k] = isa.or(codes[k], isa.field(eight, k as i32 - place, 1 << place));
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use exotherm_tensor::formats;

    use super::*;
    use crate::cpu::groups::room_for;
    use crate::cpu::integers::{quantize, words_of};
    use crate::cpu::panels::{decode_panel_row, pack_panel};
    use crate::layout::UNIT;

    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u8 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 56) as u8
        }

        /// A row of random codes under scales of ordinary size, of either sign.
        fn row(&mut self, dtype: DType, n_in: usize) -> Vec<u8> {
            let mut bytes: Vec<u8> = (0..dtype.row_bytes(n_in).unwrap()).map(|_| self.next()).collect();
            let scales: &[usize] = match dtype {
                DType::Q8_0 | DType::Q4_0 | DType::Q5_0 => &[0],
                DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
                DType::Q2K => &[80, 82],
                DType::Q3K => &[108],
                DType::Q6K => &[208],
                DType::F32 | DType::F16 | DType::BF16 => &[],
            };
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                for &at in scales {
                    // The exponent of a half is in bits 2 to 6 of its second byte: keep it near 1.
                    block[at + 1] = block[at + 1] & 0x83 | 0x38;
                }
            }
            bytes
        }
    }

    const WIDTH_IN: usize = 512;
    const OUTPUTS: usize = 2 * WIDTH + 5;

    fn quantized_types() -> impl Iterator<Item = DType> {
        DType::all().filter(|t| t.is_quantized())
    }

    /// Rows of blocks, and the panels they are packed in.
    fn weights(dtype: DType) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut numbers = Numbers(dtype as u64 + 5);
        let rows: Vec<Vec<u8>> = (0..OUTPUTS).map(|_| numbers.row(dtype, WIDTH_IN)).collect();
        let panel_bytes = Layout::of(dtype).unwrap().panel_bytes(WIDTH_IN).unwrap();
        let mut panels = vec![0; OUTPUTS.div_ceil(WIDTH) * panel_bytes];
        for (rows, panel) in rows.chunks(WIDTH).zip(panels.chunks_mut(panel_bytes)) {
            let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
            pack_panel(dtype, &rows, panel);
        }
        (rows, panels)
    }

    /// `n` rows of activations as integers in groups.
    fn ints(level: Level, n: usize) -> Vec<u32> {
        let words = words_of(WIDTH_IN, 1).unwrap();
        let mut out = vec![0; words * room_for(n)];
        for row in 0..n {
            let x: Vec<f32> = (0..WIDTH_IN)
                .map(|i| ((row * 7 + i) as f32 * 0.37).sin() * (1 + (i / 32 + row) % 5) as f32)
                .collect();
            let first = row / GROUP * GROUP;
            let room = room_for((n - first).min(GROUP));
            quantize(level, &x, &mut out[first * words..][..room * words], room, row - first);
        }
        out
    }

    fn product(level: Level, dtype: DType, panels: &[u8], words: &[u32], n: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; n * OUTPUTS];
        let x = IntRows::new(words, WIDTH_IN, n);
        PanelProduct { dtype, panels, x, out: &mut out, stride: OUTPUTS, skip: 0, columns: OUTPUTS }
            .run(level);
        out
    }

    #[test]
    fn panels_decode_as_the_blocks_they_are_made_of() {
        for dtype in quantized_types() {
            let (rows, panels) = weights(dtype);
            let panel_bytes = Layout::of(dtype).unwrap().panel_bytes(WIDTH_IN).unwrap();
            for (i, row) in rows.iter().enumerate() {
                let (mut want, mut have) = (vec![0.0; WIDTH_IN], vec![1.0; WIDTH_IN]);
                formats::decode(dtype, row, &mut want);
                decode_panel_row(
                    dtype,
                    &panels[i / WIDTH * panel_bytes..][..panel_bytes],
                    i % WIDTH,
                    &mut have,
                );
                let differs = want.iter().zip(&have).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(differs.map(|i| (i, want[i], have[i])), None, "{dtype} row {i}");
            }
        }
    }

    #[test]
    fn every_level_and_any_number_of_rows_give_the_same_bits() {
        let scalar = Level::named("scalar").unwrap();
        for dtype in quantized_types() {
            let (_, panels) = weights(dtype);
            let alone = {
                let all = ints(scalar, 19);
                let many = product(scalar, dtype, &panels, &all, 19);
                assert!(many.iter().all(|v| v.is_finite()));
                many
            };
            for level in Level::available() {
                for n in [1, 2, 3, 4, 5, 8, 9, 12, 16, 19] {
                    let have = product(level, dtype, &panels, &ints(level, n), n);
                    let differs = have.iter().zip(&alone).position(|(a, b)| a.to_bits() != b.to_bits());
                    let values = differs.map(|i| (i, have[i], alone[i]));
                    assert_eq!(values, None, "{dtype}, {n} rows at {}", level.name());
                }
            }
        }
    }

    /// Exact products of decoded weights and rounded activations in f64; every unit's part passes through one
    /// rounding of its scale and one or two for every unit that comes after.
    #[test]
    fn products_are_those_of_the_rounded_activations() {
        let level = Level::best();
        let n = 3;
        for dtype in quantized_types() {
            let (rows, panels) = weights(dtype);
            let words = ints(level, n);
            let have = product(level, dtype, &panels, &words, n);
            let group = IntRows::new(&words, WIDTH_IN, n).group(0).0;
            for (i, &have) in have.iter().enumerate() {
                let (row, column) = (i / OUTPUTS, i % OUTPUTS);
                let mut weights = vec![0.0; WIDTH_IN];
                formats::decode(dtype, &rows[column], &mut weights);
                let (mut want, mut magnitude) = (0.0, 0.0);
                for (u, unit) in group.chunks(LINES * 4).enumerate() {
                    let scale = f64::from(f32::from_bits(unit[SCALE * 4 + row]));
                    for c in 0..UNIT {
                        let code = unit[c / 4 * 4 + row].to_le_bytes()[c % 4] as i8;
                        let product = scale * f64::from(code) * f64::from(weights[u * UNIT + c]);
                        want += product;
                        magnitude += product.abs();
                    }
                }
                // An `o` and its code times `s` may cancel: together they are at most some times their difference.
                let roundings = (4 * WIDTH_IN / UNIT + 4) as f64 * 4.0;
                let allowed = magnitude * roundings * f64::from(f32::EPSILON);
                assert!(
                    (f64::from(have) - want).abs() <= allowed,
                    "{dtype}: {have} is not {want} ({allowed:e})"
                );
            }
        }
    }

    #[test]
    fn columns_that_cut_a_panel_are_the_same_as_in_the_whole() {
        let level = Level::best();
        let (n, dtype) = (11, DType::Q5K);
        let (_, panels) = weights(dtype);
        let words = ints(level, n);
        let whole = product(level, dtype, &panels, &words, n);
        let panel_bytes = Layout::of(dtype).unwrap().panel_bytes(WIDTH_IN).unwrap();
        for (from, to) in [(0, 1), (3, 16), (3, 17), (15, 33), (16, 37), (36, 37), (5, 6)] {
            let columns = to - from;
            let mut out = vec![f32::NAN; n * columns];
            PanelProduct {
                dtype,
                panels: &panels[from / WIDTH * panel_bytes..to.div_ceil(WIDTH) * panel_bytes],
                x: IntRows::new(&words, WIDTH_IN, n),
                out: &mut out,
                stride: columns,
                skip: from % WIDTH,
                columns,
            }
            .run(level);
            for (have, want) in out.chunks(columns).zip(whole.chunks(OUTPUTS)) {
                assert_eq!(have, &want[from..to]);
            }
        }
    }
}
