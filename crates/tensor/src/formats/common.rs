//! What several block formats share: rounding, bit packing and the search for the scales of the K-quants.
//!
//! Arithmetic stays in f32 and loops over arrays of a fixed size, with sums in eight lanes, because the compiler
//! may not reorder a plain sum of floats and would leave it scalar.

use super::{f16_to_f32, f32_to_f16};

/// Groups whose values are all smaller count as zero: the squares used as weights would vanish.
const NEGLIGIBLE: f32 = 1e-15;

// ---- fields of a block

#[inline(always)]
pub(super) fn f16_at(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[inline(always)]
pub(super) fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[inline(always)]
pub(super) fn put_f16(block: &mut [u8], at: usize, value: f32) {
    put_bits(block, at, f32_to_f16(value));
}

#[inline(always)]
pub(super) fn put_bits(block: &mut [u8], at: usize, bits: u16) {
    block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
}

// ---- rounding

/// Adding and subtracting it leaves no room for a fraction below the last place: the sum is rounded to an integer
/// by the processor. The library's rounding would be a call per value where the target lacks an instruction.
const NO_FRACTION: f32 = 12_582_912.0; // 1.5 * 2^23

/// Rounds |v| < 2^22 to the nearest integer, ties to even; larger values stay large.
#[inline(always)]
pub(super) fn round_half_even(v: f32) -> f32 {
    (v + NO_FRACTION) - NO_FRACTION
}

/// Rounds |v| < 2^22 to the nearest integer, ties away from zero.
#[inline(always)]
pub(super) fn round_half_away(v: f32) -> f32 {
    let even = round_half_even(v);
    let rest = v - even; // exact
    let up = if rest == 0.5 && v > 0.0 { 1.0 } else { 0.0 };
    let down = if rest == -0.5 && v < 0.0 { 1.0 } else { 0.0 };
    even + up - down
}

/// NaN becomes `low`.
#[inline(always)]
pub(super) fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = if v > low { v } else { low };
    if v < high { v } else { high }
}

/// The integer part of a value that is not negative, at most `max`.
#[inline(always)]
pub(super) fn truncate_to_code(v: f32, max: f32) -> u8 {
    clamp(v, 0.0, max) as i32 as u8
}

/// A rounded value from 0 to 255 as a byte; the integer lies in the lowest bits of the sum.
#[inline(always)]
fn to_code(rounded: f32) -> u8 {
    (rounded + NO_FRACTION).to_bits() as u8
}

#[inline(always)]
pub(super) fn reciprocal_or_zero(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

// ---- whole groups

/// `x.map(f)`, which the compiler does not turn into vector code for arrays of this size, as a loop.
#[inline(always)]
pub(super) fn each<const N: usize, T: Copy + Default>(x: &[f32; N], f: impl Fn(f32) -> T) -> [T; N] {
    let mut out = [T::default(); N];
    for (out, &v) in out.iter_mut().zip(x) {
        *out = f(v);
    }
    out
}

#[inline(always)]
pub(super) fn multiply<const N: usize>(a: &[f32; N], b: &[f32; N]) -> [f32; N] {
    let mut out = [0.0; N];
    for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
        *out = a * b;
    }
    out
}

const LANES: usize = 8;

/// The sums of the `K` terms that `terms` makes of each pair of elements, in lanes that are added pairwise at the end.
///
/// Not inlined: were the length known, the loop would be unrolled before the compiler looks for vectors in it, and
/// stay scalar.
#[inline(never)]
pub(super) fn sums<const K: usize>(a: &[f32], b: &[f32], terms: impl Fn(f32, f32) -> [f32; K]) -> [f32; K] {
    let mut lanes = [[0.0; LANES]; K];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for (k, lanes) in lanes.iter_mut().enumerate() {
            for (l, lane) in lanes.iter_mut().enumerate() {
                *lane += terms(a[l], b[l])[k];
            }
        }
    }
    lanes.map(|lanes| join(lanes, |a, b| a + b))
}

/// `pick` over all values, which must not depend on their order.
#[inline(always)]
fn reduce<const N: usize>(x: &[f32; N], pick: impl Fn(f32, f32) -> f32) -> f32 {
    let chunks = x.as_chunks::<LANES>().0;
    let mut lanes = chunks[0];
    for chunk in &chunks[1..] {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = pick(*lane, v);
        }
    }
    join(lanes, pick)
}

#[inline(always)]
fn join(l: [f32; LANES], pick: impl Fn(f32, f32) -> f32) -> f32 {
    let half: [f32; LANES / 2] = std::array::from_fn(|i| pick(l[i], l[i + LANES / 2]));
    pick(pick(half[0], half[2]), pick(half[1], half[3]))
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

#[inline(always)]
pub(super) fn min_and_max<const N: usize>(x: &[f32; N]) -> (f32, f32) {
    (reduce(x, smaller), reduce(x, larger))
}

#[inline(always)]
pub(super) fn largest_magnitude<const N: usize>(x: &[f32; N]) -> f32 {
    reduce(&each(x, f32::abs), larger)
}

/// The first value of largest magnitude; 0 if all are zero, whatever their signs.
#[inline(always)]
pub(super) fn signed_peak<const N: usize>(x: &[f32; N]) -> f32 {
    let peak = largest_magnitude(x);
    if peak == 0.0 { 0.0 } else { x.iter().copied().find(|v| v.abs() == peak).unwrap_or(peak) }
}

// ---- bit packing

/// Codes 0..16 in the low nibbles, 16..32 in the high ones; a fifth bit is left out.
#[inline(always)]
pub(super) fn pack_nibbles(codes: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| codes[i] & 15 | codes[i + 16] << 4)
}

/// The codes of 16 bytes, in the order that [`pack_nibbles`] takes them.
#[inline(always)]
pub(super) fn unpack_nibbles(packed: &[u8]) -> [u8; 32] {
    let mut codes = [0; 32];
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), &q) in low.iter_mut().zip(high).zip(packed) {
        (*low, *high) = (q & 15, q >> 4);
    }
    codes
}

#[inline(always)]
pub(super) fn pack_fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    let bits = codes.iter().enumerate().fold(0, |bits, (i, &q)| bits | ((q as u32 >> 4) & 1) << i);
    bits.to_le_bytes()
}

/// The fifth bit of code `i`, at its place in the code.
#[inline(always)]
pub(super) fn fifth_bit(fifth: u32, i: usize) -> u32 {
    if fifth & (1 << i) != 0 { 16 } else { 0 }
}

/// Four-bit codes of a K-quant: byte `32p + i` holds codes `64p + i` and `64p + 32 + i`.
pub(super) fn pack_nibble_pairs(codes: &[u8; 256]) -> [u8; 128] {
    std::array::from_fn(|b| {
        let low = b / 32 * 64 + b % 32;
        codes[low] | codes[low + 32] << 4
    })
}

/// Two-bit codes of a K-quant: byte `32h + i` holds codes `128h + i`, `128h + 32 + i`, …
pub(super) fn pack_two_bit_planes(codes: &[u8; 256]) -> [u8; 64] {
    std::array::from_fn(|b| {
        let first = b / 32 * 128 + b % 32;
        codes[first] | codes[first + 32] << 2 | codes[first + 64] << 4 | codes[first + 96] << 6
    })
}

/// The eight six-bit scales and minima of Q4_K and Q5_K, in twelve bytes:
///
/// | bytes | bits 0..6 | bits 6..8 |
/// |---|---|---|
/// | 0..4 | scales 0..4 | upper bits of scales 4..8 |
/// | 4..8 | minima 0..4 | upper bits of minima 4..8 |
///
/// Bytes 8..12 hold the lower nibbles of scales 4..8 in their low nibbles and of minima 4..8 in their high ones.
#[inline(always)]
pub fn unpack_scales_and_mins(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        let (s, m, lower) = (packed[i], packed[i + 4], packed[i + 8]);
        (scales[i], scales[i + 4]) = (s & 63, lower & 15 | (s >> 6) << 4);
        (mins[i], mins[i + 4]) = (m & 63, lower >> 4 | (m >> 6) << 4);
    }
    (scales, mins)
}

pub(super) fn pack_scales_and_mins(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for i in 0..4 {
        packed[i] = scales[i] | (scales[i + 4] >> 4) << 6;
        packed[i + 4] = mins[i] | (mins[i + 4] >> 4) << 6;
        packed[i + 8] = scales[i + 4] & 15 | mins[i + 4] << 4;
    }
    packed
}

// ---- K-quants with a scale and a minimum per group: Q2_K, Q4_K, Q5_K

/// What the search for the scale and the minimum of a group makes small.
pub(super) enum Metric {
    Absolute,
    Squared,
}

/// How the scale and the minimum of a group are searched: grids of `code_max + first + 0.1 * i` steps between the
/// smallest and the largest value are tried for `i` in `0..=steps`, each followed by a weighted least-squares fit.
pub(super) struct AffineFit {
    pub code_max: f32,
    pub first: f32,
    pub steps: u8,
    pub metric: Metric,
    /// The largest integer that a group's scale or minimum can be.
    pub levels: f32,
}

/// A super-block before packing; the scales `d` and `d_min` as bits of an f16.
pub(super) struct AffineBlock<const GROUPS: usize> {
    pub d: u16,
    pub d_min: u16,
    pub scales: [u8; GROUPS],
    pub mins: [u8; GROUPS],
    pub codes: [u8; 256],
}

/// The weights of Q4_K and Q5_K: large values matter more, but small ones are not forgotten.
#[inline(always)]
pub(super) fn magnitude_above_rms(x: &[f32; 32]) -> [f32; 32] {
    let [squares] = sums(x, x, |a, b| [a * b]);
    let rms = (squares / 32.0).sqrt();
    each(x, |v| rms + v.abs())
}

/// Encodes 256 values in `GROUPS` groups of `LEN`.
///
/// What the search finds best need not stay best once `d` is an f16 and the scales are small integers. So two
/// fits per group are carried on, the units of the super-block are drawn from each and with two numbers of levels,
/// and whatever leaves the smallest sum of squared errors is kept.
#[inline(always)]
pub(super) fn encode_affine<const GROUPS: usize, const LEN: usize>(
    values: &[f32; 256],
    fit: &AffineFit,
    weigh: impl Fn(&[f32; LEN]) -> [f32; LEN],
) -> AffineBlock<GROUPS> {
    let groups: &[[f32; LEN]] = values.as_chunks().0;
    let mut fits = [[(0.0, 0.0); 2]; GROUPS];
    for (group, fits) in groups.iter().zip(&mut fits) {
        *fits = fit_scale_and_min(group, &weigh(group), fit);
    }
    let (mut units, mut chosen, mut least) = choose_levels(groups, &fits, (0, fit.levels), fit);
    for (which, fewer) in [(1, 0.0), (0, 1.0), (1, 1.0)] {
        let (other_units, others, error) = choose_levels(groups, &fits, (which, fit.levels - fewer), fit);
        if error < least {
            (units, chosen, least) = (other_units, others, error);
        }
    }
    let mut block = AffineBlock {
        d: units.d,
        d_min: units.d_min,
        scales: [0; GROUPS],
        mins: [0; GROUPS],
        codes: [0; 256],
    };
    for (g, codes) in block.codes.as_chunks_mut::<LEN>().0.iter_mut().enumerate() {
        let (scale, min) = refine_levels(&groups[g], chosen[g], &units, fit);
        (block.scales[g], block.mins[g]) = (to_code(scale), to_code(min));
        let rounded = affine_codes(&groups[g], units.scale(scale), units.min(min), fit.code_max);
        *codes = each(&rounded, to_code);
    }
    block
}

/// The scales of a super-block, and how many levels a group's scale or minimum is.
struct Units {
    d: u16,
    d_min: u16,
    levels_per_scale: f32,
    levels_per_min: f32,
}

impl Units {
    fn new(max_scale: f32, max_min: f32, levels: f32) -> Units {
        let per = |max: f32| if max > 0.0 { levels / max } else { 0.0 };
        Units {
            d: f32_to_f16(max_scale / levels),
            d_min: f32_to_f16(max_min / levels),
            levels_per_scale: per(max_scale),
            levels_per_min: per(max_min),
        }
    }

    #[inline(always)]
    fn scale(&self, level: f32) -> f32 {
        f16_to_f32(self.d) * level
    }

    #[inline(always)]
    fn min(&self, level: f32) -> f32 {
        f16_to_f32(self.d_min) * level
    }
}

/// With units in which the largest scale and minimum among the fits number `which` are `top_level`: for each group
/// the levels of the better fit, and the sum of squared errors.
#[inline(always)]
fn choose_levels<const GROUPS: usize, const LEN: usize>(
    groups: &[[f32; LEN]],
    fits: &[[(f32, f32); 2]; GROUPS],
    (which, top_level): (usize, f32),
    fit: &AffineFit,
) -> (Units, [(f32, f32); GROUPS], f32) {
    let max_scale = fits.iter().fold(0.0, |max, fits| larger(max, fits[which].0));
    let max_min = fits.iter().fold(0.0, |max, fits| larger(max, fits[which].1));
    let units = Units::new(max_scale, max_min, top_level);
    let mut chosen = [(0.0, 0.0); GROUPS];
    let mut total = 0.0;
    for ((group, fits), chosen) in groups.iter().zip(fits).zip(&mut chosen) {
        let [(first, error), (second, other_error)] = fits.map(|(scale, min)| {
            let scale = clamp(round_half_even(units.levels_per_scale * scale), 0.0, fit.levels);
            let min = clamp(round_half_even(units.levels_per_min * min), 0.0, fit.levels);
            ((scale, min), affine_error(group, units.scale(scale), units.min(min), fit.code_max))
        });
        (*chosen, total) =
            if other_error < error { (second, total + other_error) } else { (first, total + error) };
    }
    (units, chosen, total)
}

/// The levels or, if they are better, their neighbours.
#[inline(always)]
fn refine_levels<const LEN: usize>(
    group: &[f32; LEN],
    (scale, min): (f32, f32),
    units: &Units,
    fit: &AffineFit,
) -> (f32, f32) {
    let error_at = |scale, min| affine_error(group, units.scale(scale), units.min(min), fit.code_max);
    let (mut best, mut least) = ((scale, min), error_at(scale, min));
    for (up, min_up) in [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)] {
        let (scale, min) = (clamp(scale + up, 0.0, fit.levels), clamp(min + min_up, 0.0, fit.levels));
        let error = error_at(scale, min);
        if error < least {
            (best, least) = ((scale, min), error);
        }
    }
    best
}

#[inline(always)]
fn affine_codes<const LEN: usize>(group: &[f32; LEN], scale: f32, min: f32, code_max: f32) -> [f32; LEN] {
    let divisor = if scale != 0.0 { scale } else { f32::INFINITY };
    each(group, |v| clamp(round_half_even((v + min) / divisor), 0.0, code_max))
}

#[inline(always)]
fn affine_error<const LEN: usize>(group: &[f32; LEN], scale: f32, min: f32, code_max: f32) -> f32 {
    let codes = affine_codes(group, scale, min, code_max);
    let [error] = sums(group, &codes, |v, code| {
        let off = scale * code - min - v;
        [off * off]
    });
    error
}

/// Finds `scale` and `min >= 0` so that `scale * q - min` with integer codes `q` comes close to `x`: first the fit
/// that is best by the weighted metric, then the one with the smallest sum of squares.
#[inline(always)]
fn fit_scale_and_min<const N: usize>(x: &[f32; N], weights: &[f32; N], fit: &AffineFit) -> [(f32, f32); 2] {
    let (low, high) = min_and_max(x);
    let mut low = smaller(low, 0.0);
    if high == low {
        return [(0.0, -low); 2];
    }
    let [sum_w, sum_x] = sums(weights, x, |w, v| [w, w * v]);
    let inverse = fit.code_max / (high - low);
    let mut scale = 1.0 / inverse;
    let codes = grid_codes(x, inverse, low, fit.code_max);
    let [mut least_weighted, mut least] = affine_fit_errors(x, weights, &codes, (scale, low), &fit.metric);
    let mut plain = (scale, -low);
    for i in 0..=fit.steps {
        let inverse = (fit.first + 0.1 * i as f32 + fit.code_max) / (high - low);
        let codes = grid_codes(x, inverse, low, fit.code_max);
        let weighted_codes = multiply(weights, &codes);
        let [sum_l, sum_ll] = sums(&weighted_codes, &codes, |wl, l| [wl, wl * l]);
        let [sum_xl] = sums(&weighted_codes, x, |wl, v| [wl * v]);
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        if determinant <= 0.0 {
            continue;
        }
        let mut new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut new_low = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
        if new_low > 0.0 {
            (new_scale, new_low) = (sum_xl / sum_ll, 0.0);
        }
        let [weighted_error, error] =
            affine_fit_errors(x, weights, &codes, (new_scale, new_low), &fit.metric);
        if error < least {
            (plain, least) = ((new_scale, -new_low), error);
        }
        if weighted_error < least_weighted {
            (scale, low, least_weighted) = (new_scale, new_low, weighted_error);
        }
    }
    [(scale, -low), plain]
}

#[inline(always)]
fn grid_codes<const N: usize>(x: &[f32; N], inverse: f32, low: f32, code_max: f32) -> [f32; N] {
    each(x, |v| clamp(round_half_even(inverse * (v - low)), 0.0, code_max))
}

/// The error by the weighted metric and the sum of squares.
#[inline(always)]
fn affine_fit_errors<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    codes: &[f32; N],
    (scale, low): (f32, f32),
    metric: &Metric,
) -> [f32; 2] {
    let mut off = [0.0; N];
    for (off, (&v, &code)) in off.iter_mut().zip(x.iter().zip(codes)) {
        *off = scale * code + low - v;
    }
    match metric {
        Metric::Absolute => sums(weights, &off, |w, off| [w * off.abs(), off * off]),
        Metric::Squared => sums(weights, &off, |w, off| [w * (off * off), off * off]),
    }
}

// ---- K-quants with a signed scale per group: Q3_K, Q6_K

/// A super-block before packing; `d` as bits of an f16, codes with their offset added.
pub(super) struct SymmetricBlock {
    pub d: u16,
    pub scales: [i8; 16],
    pub codes: [u8; 256],
}

/// Encodes 256 values in groups of 16. The group of the largest scale gets `-levels`, the others integers in
/// proportion; the codes run from `-code_end` to `code_end - 1`.
#[inline(always)]
pub(super) fn encode_symmetric(
    values: &[f32; 256],
    levels: f32,
    code_end: f32,
    fit_scale: impl Fn(&[f32; 16]) -> f32,
) -> SymmetricBlock {
    let groups = values.as_chunks::<16>().0;
    let mut scales = [0.0; 16];
    for (scale, group) in scales.iter_mut().zip(groups) {
        *scale = if largest_magnitude(group) < NEGLIGIBLE { 0.0 } else { fit_scale(group) };
    }
    // The rounding of `d` to f16 and of the scales to integers is a matter of luck: draw more than once.
    let (mut block, mut least) = quantize_symmetric(groups, &scales, levels, levels, code_end);
    for fewer in 1..=4 {
        let (other, error) = quantize_symmetric(groups, &scales, levels, levels - fewer as f32, code_end);
        if error < least {
            (block, least) = (other, error);
        }
    }
    block
}

/// The super-block in which the largest scale becomes `-peak_level`, and its sum of squared errors.
#[inline(always)]
fn quantize_symmetric(
    groups: &[[f32; 16]],
    scales: &[f32; 16],
    levels: f32,
    peak_level: f32,
    code_end: f32,
) -> (SymmetricBlock, f32) {
    let inverse = -peak_level * reciprocal_or_zero(signed_peak(scales));
    let d = f32_to_f16(reciprocal_or_zero(inverse));
    let scales = each(scales, |s| clamp(round_half_even(inverse * s), -levels, levels - 1.0) as i8);
    let mut codes = [0; 256];
    let mut error = 0.0;
    for ((codes, group), &scale) in codes.as_chunks_mut::<16>().0.iter_mut().zip(groups).zip(&scales) {
        let scale = f16_to_f32(d) * scale as f32;
        let divisor = if scale != 0.0 { scale } else { f32::INFINITY };
        let rounded = each(group, |v| clamp(round_half_even(v / divisor), -code_end, code_end - 1.0));
        *codes = each(&rounded, |q| to_code(q + code_end));
        let [group_error] = sums(group, &rounded, |v, code| {
            let off = scale * code - v;
            [off * off]
        });
        error += group_error;
    }
    (SymmetricBlock { d, scales, codes }, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_matches_the_standard_library() {
        for i in -4000..4000 {
            for v in [i as f32 / 8.0, (i as f32 / 8.0).next_up(), (i as f32 / 8.0).next_down()] {
                assert_eq!(round_half_away(v), v.round(), "{v}");
                assert_eq!(round_half_even(v), v.round_ties_even(), "{v}");
            }
        }
    }

    #[test]
    fn scales_and_mins_survive_packing() {
        let scales = [0, 63, 17, 42, 63, 1, 16, 47];
        let mins = [63, 5, 32, 31, 15, 48, 63, 0];
        assert_eq!(unpack_scales_and_mins(&pack_scales_and_mins(&scales, &mins)), (scales, mins));
    }

    #[test]
    fn the_first_of_equal_peaks_wins() {
        let mut x = [0.0; 32];
        (x[9], x[30]) = (-2.0, 2.0);
        assert_eq!(signed_peak(&x), -2.0);
        assert_eq!(signed_peak(&[-0.0; 32]).to_bits(), 0);
    }

    #[test]
    fn an_exact_grid_is_found() {
        let x: [f32; 32] = std::array::from_fn(|i| 0.25 * (i % 16) as f32 - 1.5);
        let fit = AffineFit { code_max: 15.0, first: -1.0, steps: 20, metric: Metric::Squared, levels: 63.0 };
        for (scale, min) in fit_scale_and_min(&x, &[1.0; 32], &fit) {
            assert!((scale - 0.25).abs() < 1e-6 && (min - 1.5).abs() < 1e-5, "{scale} {min}");
        }
    }
}
