//! Rows of activations as integers, in the order in which the kernels read them.
//!
//! Rows lie in groups: for every unit of 32 columns there are sixteen lines, each with one word of every row of the group.
//!
//! | line | what a row's word is |
//! |---|---|
//! | `k` < 8 | the integers of columns `4k..4k + 4`, a byte each |
//! | 8 | `d`, the scale, f32 |
//! | 9 | −8 · the sum of the integers, i32 |
//! | 10 | `d` · the sum of the integers, f32 |
//! | 11, 12 | as 9, for either half of the unit |
//! | 13, 14 | as 10, for either half of the unit |
//! | 15 | nothing |

use super::groups::{GROUP, group_rows};
use super::simd::{Isa, Kernel, Level, WIDTH};
use crate::layout::UNIT;
use crate::rounding::NOTHING;

/// Lines of a unit.
pub(super) const LINES: usize = 16;
pub(super) const SCALE: usize = 8;
pub(super) const SUM: usize = 9;
pub(super) const SCALED_SUM: usize = 10;
pub(super) const HALF_SUMS: usize = 11;
pub(super) const HALF_SCALED_SUMS: usize = 13;

/// One unit of a group of `R` rows.
pub(super) type UnitOf<const R: usize> = [[u32; R]; LINES];

/// Rows of integers of one width.
#[derive(Clone, Copy)]
pub(crate) struct IntRows<'a> {
    words: &'a [u32],
    units: usize,
    rows: usize,
}

impl<'a> IntRows<'a> {
    pub fn new(words: &'a [u32], width: usize, rows: usize) -> IntRows<'a> {
        IntRows { words, units: width / UNIT, rows }
    }

    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.units * UNIT
    }

    /// The words of the group that row `first`, a multiple of eight, begins, and how many of its rows are used.
    #[inline(always)]
    pub fn group(&self, first: usize) -> (&'a [u32], usize) {
        let rows = (self.rows - first).min(GROUP);
        let at = first * self.units * LINES;
        (&self.words[at..at + group_rows(rows) * self.units * LINES], rows)
    }
}

/// Rows of words that each are a group of their own, from which others are gathered.
#[derive(Clone, Copy)]
pub(crate) struct SingleRows<'a> {
    pub words: &'a [u32],
    pub row_words: usize,
}

impl<'a> SingleRows<'a> {
    fn row(&self, row: usize) -> &'a [u32] {
        &self.words[row * self.row_words..(row + 1) * self.row_words]
    }

    /// The words of these rows in groups; `out` has room for them all.
    pub fn gathered(&self, index: &[u32], out: &'a mut [u32]) -> &'a [u32] {
        if let [row] = index {
            return self.row(*row as usize);
        }
        let words = self.row_words;
        for (g, rows) in index.chunks(GROUP).enumerate() {
            let members = group_rows(rows.len());
            let group = &mut out[g * GROUP * words..][..members * words];
            for member in 0..members {
                let lines = group[member..].iter_mut().step_by(members);
                match rows.get(member) {
                    Some(&row) => lines.zip(self.row(row as usize)).for_each(|(to, word)| *to = *word),
                    None => lines.for_each(|to| *to = 0),
                }
            }
        }
        out
    }
}

/// Words that `rows` rows of this width take.
pub(super) fn words_of(width: usize, rows: usize) -> Option<usize> {
    (width / UNIT * LINES).checked_mul(rows)
}

/// Writes row `member` of a group of `members` rows, rounded as `rounding::int8_block` rounds.
pub(super) fn quantize(level: Level, x: &[f32], group: &mut [u32], members: usize, member: usize) {
    level.run(Quantize { x, group, members, member });
}

struct Quantize<'a> {
    x: &'a [f32],
    group: &'a mut [u32],
    members: usize,
    member: usize,
}

impl Kernel for Quantize<'_> {
    type Out = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.members {
            1 => put::<I, 1>(isa, self.x, self.group, self.member),
            4 => put::<I, 4>(isa, self.x, self.group, self.member),
            _ => put::<I, GROUP>(isa, self.x, self.group, self.member),
        }
    }
}

#[inline(always)]
fn put<I: Isa, const R: usize>(isa: I, x: &[f32], group: &mut [u32], member: usize) {
    assert!(member < R);
    let units = group.as_chunks_mut::<R>().0.as_chunks_mut::<LINES>().0;
    for (x, unit) in x.as_chunks::<UNIT>().0.iter().zip(units) {
        let words = quantized(isa, x);
        for (line, word) in unit.iter_mut().zip(&words[..LINES - 1]) {
            line[member] = *word;
        }
    }
}

/// The words of a unit of one row.
#[inline(always)]
fn quantized<I: Isa>(isa: I, x: &[f32; UNIT]) -> [u32; LINES] {
    // Without their signs floats are ordered as their bits are.
    let mut largest = 0;
    for v in x {
        largest = largest.max(v.to_bits() & 0x7fff_ffff);
    }
    let largest = f32::from_bits(largest);
    let inverse = isa.splat(if largest > NOTHING { 127.0 / largest } else { 0.0 });
    let (mut words, mut sums) = ([0; LINES], [0; 2]);
    for (half, x) in x.as_chunks::<WIDTH>().0.iter().enumerate() {
        let (quads, sum) = isa.rounded(isa.mul(isa.load(x), inverse));
        words[4 * half..4 * half + 4].copy_from_slice(&quads);
        sums[half] = sum;
    }
    let scale = largest / 127.0;
    // What is no number makes integers of any size here, under a scale that is no number either.
    let sum = sums[0].wrapping_add(sums[1]);
    words[SCALE] = scale.to_bits();
    words[SUM] = sum.wrapping_mul(-8) as u32;
    words[SCALED_SUM] = (scale * sum as f32).to_bits();
    for half in 0..2 {
        words[HALF_SUMS + half] = sums[half].wrapping_mul(-8) as u32;
        words[HALF_SCALED_SUMS + half] = (scale * sums[half] as f32).to_bits();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::groups::room_for;
    use crate::rounding::int8_block;

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.7).sin() * 3f32.powi(i as i32 / 32 % 9 - 4)).collect()
    }

    #[test]
    fn every_level_rounds_as_is_defined() {
        let mut rows = values(32 * 20);
        rows[32..64].fill(0.0);
        rows[64..96].fill(-2.5);
        rows[96..128].copy_from_slice(&std::array::from_fn::<f32, 32, _>(|i| (i as f32 - 15.5) * 1e-38));
        for level in Level::available() {
            let mut group = vec![7; rows.len() / UNIT * LINES];
            quantize(level, &rows, &mut group, 1, 0);
            for (x, unit) in rows.chunks(UNIT).zip(group.chunks(LINES)) {
                let mut codes = [0i8; UNIT];
                let scale = int8_block(x, &mut codes);
                let have: Vec<i8> = unit[..8].iter().flat_map(|w| w.to_le_bytes()).map(|b| b as i8).collect();
                assert_eq!(have, codes, "{x:?} at {}", level.name());
                assert_eq!(unit[SCALE], scale.to_bits());
                let sums = [0, 16].map(|at| codes[at..at + 16].iter().map(|&c| i32::from(c)).sum::<i32>());
                assert_eq!(unit[SUM] as i32, -8 * (sums[0] + sums[1]));
                assert_eq!(unit[SCALED_SUM], (scale * (sums[0] + sums[1]) as f32).to_bits());
                for half in 0..2 {
                    assert_eq!(unit[HALF_SUMS + half] as i32, -8 * sums[half]);
                    assert_eq!(unit[HALF_SCALED_SUMS + half], (scale * sums[half] as f32).to_bits());
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_has_a_scale_that_shows_it() {
        for level in Level::available() {
            for strange in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut row = values(2 * UNIT);
                row[UNIT + 5] = strange;
                let mut group = vec![0; 2 * LINES];
                quantize(level, &row, &mut group, 1, 0);
                assert!(f32::from_bits(group[SCALE]).is_finite());
                assert!(!f32::from_bits(group[LINES + SCALE]).is_finite(), "{strange} at {}", level.name());
                let mut codes = [0; UNIT];
                assert!(!int8_block(&row[UNIT..], &mut codes).is_finite(), "{strange}");
            }
        }
    }

    #[test]
    fn gathered_rows_are_those_that_were_asked_for() {
        let (width, level) = (64, Level::best());
        let words = words_of(width, 1).unwrap();
        let mut single = vec![0; 20 * words];
        let rows = values(20 * width);
        for (x, row) in rows.chunks(width).zip(single.chunks_mut(words)) {
            quantize(level, x, row, 1, 0);
        }
        let single = SingleRows { words: &single, row_words: words };
        for n in 1..=19 {
            let index: Vec<u32> = (0..n as u32).map(|i| (i * 7 + 3) % 20).collect();
            let mut out = vec![9; room_for(n) * words];
            let gathered = IntRows::new(single.gathered(&index, &mut out), width, n);
            assert_eq!((gathered.len(), gathered.width()), (n, width));
            for first in (0..n).step_by(GROUP) {
                let (group, used) = gathered.group(first);
                let members = group.len() / words;
                assert_eq!(used, (n - first).min(GROUP));
                for member in 0..members {
                    let have: Vec<u32> = group[member..].iter().step_by(members).copied().collect();
                    match index[first..].get(member).filter(|_| member < used) {
                        Some(&row) => assert_eq!(have, single.row(row as usize)),
                        None => assert!(have.iter().all(|&w| w == 0)),
                    }
                }
            }
        }
    }
}
