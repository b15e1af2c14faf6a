//! The rows that an op multiplies weights with: normed where the op norms them, in groups, as integers where the weights
//! are quantized, as pairs of BF16 where they are BF16 and the processor can multiply such pairs, and else as floats. Many
//! rows are made ready by all lanes before a barrier; one row every lane makes ready for itself, which is cheaper than the
//! barrier and gives the same bits.

use super::context::{Ctx, Lane};
use super::floats;
use super::groups::{FloatRows, GROUP, PairRows, interleave, room_for};
use super::integers::{self, IntRows, SingleRows, words_of};
use super::pack::Packer;
use super::rows::Rows;
use super::simd::Level;
use super::vector::normalize;
use crate::ops::Norm;
use crate::program::{Buf, MatId};
use crate::rounding::Rounding;

/// Where rows come from.
#[derive(Clone, Copy)]
enum Source {
    Buffer(Buf),
    /// Only the rows that want logits.
    LogitRows(Buf),
    /// What an earlier stage of the op left in the shared scratch, rows of this width.
    Work(usize),
}

/// A part of every row that weights are multiplied with.
#[derive(Clone, Copy)]
struct Slice {
    at: usize,
    width: usize,
    /// What of `Input::made` the weights want that it meets.
    ints: Option<usize>,
    pairs: Option<usize>,
}

/// What a slice is rounded to for all the weights that want it so.
#[derive(Clone, Copy)]
struct Made {
    at: usize,
    width: usize,
    rounding: Rounding,
    /// Of a row.
    words: usize,
    words_before: usize,
}

impl Made {
    fn is(&self, at: usize, width: usize, rounding: Rounding) -> bool {
        (self.at, self.width, self.rounding) == (at, width, rounding)
    }

    /// Words of a row of this width.
    fn words_of(rounding: Rounding, width: usize) -> Option<usize> {
        match rounding {
            Rounding::Int8 => words_of(width, 1),
            Rounding::Bf16 => Some(floats::pairs_of(width)),
            // No level rounds to F16.
            Rounding::None | Rounding::F16 => Some(0),
        }
    }

    /// Writes row `member` of a group of `members` rows.
    fn put(&self, level: Level, row: &[f32], group: &mut [u32], members: usize, member: usize) {
        let x = &row[self.at..self.at + self.width];
        match self.rounding {
            Rounding::Int8 => integers::quantize(level, x, group, members, member),
            Rounding::Bf16 => floats::to_pairs(level, x, group, members, member),
            Rounding::None | Rounding::F16 => {}
        }
    }
}

pub(crate) struct Input {
    source: Source,
    norm: Option<Norm>,
    /// Rows that each row of the source is cut into.
    parts: usize,
    /// Whether every row of words is a group of its own, for rows that are picked one by one.
    single: bool,
    /// Whether there are weights that want floats.
    interleaved: bool,
    /// Whether the op itself wants rows as floats.
    floats: bool,
    /// Width of a row.
    width: usize,
    slices: Vec<Slice>,
    made: Vec<Made>,
    /// Words of a row of all that is made.
    words: usize,
}

/// Rows as the weights of a matrix want them.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    /// Empty if no weights want floats.
    pub floats: FloatRows<'a>,
    /// Empty if no weights want pairs.
    pub pairs: PairRows<'a>,
    pub ints: IntRows<'a>,
    rows: usize,
}

impl Operand<'_> {
    pub fn len(&self) -> usize {
        self.rows
    }
}

/// All rows of an input.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    input: &'a Input,
    /// Empty if there is a norm and the op does not want them.
    pub floats: Rows<'a>,
    interleaved: FloatRows<'a>,
    words: &'a [u32],
    rows: usize,
}

impl Input {
    pub fn new(x: Buf, norm: Option<Norm>, weights: &[MatId], packer: &mut Packer) -> Input {
        let width = packer.program.buffer(x).width;
        let slices: Vec<_> = weights.iter().map(|&weight| (0, weight)).collect();
        Input { norm, ..Input::plain(Source::Buffer(x), width) }.with(&slices, packer)
    }

    /// Slices of a row that begin at the numbers, for the matrices beside them.
    pub fn sliced(x: Buf, slices: &[(usize, MatId)], packer: &mut Packer) -> Input {
        let width = packer.program.buffer(x).width;
        Input::plain(Source::Buffer(x), width).with(slices, packer)
    }

    pub fn of_logit_rows(x: Buf, norm: Norm, weight: MatId, packer: &mut Packer) -> Input {
        let width = packer.program.buffer(x).width;
        Input { norm: Some(norm), ..Input::plain(Source::LogitRows(x), width) }.with(&[(0, weight)], packer)
    }

    /// Rows of `width` in the shared scratch.
    pub fn of_work(width: usize, slices: &[(usize, MatId)], packer: &mut Packer) -> Input {
        Input::plain(Source::Work(width), width).with(slices, packer)
    }

    /// Each row of a buffer as `parts` rows, to be picked one by one.
    pub fn picked(x: Buf, parts: usize, weights: &[MatId], packer: &mut Packer) -> Input {
        let width = packer.program.buffer(x).width / parts;
        let slices: Vec<_> = weights.iter().map(|&weight| (0, weight)).collect();
        let input = Input { parts, single: true, ..Input::plain(Source::Buffer(x), width) };
        let input = input.with(&slices, packer);
        packer.need(|s| &mut s.gathered, &[input.words, room_for(packer.max_rows())]);
        input
    }

    fn plain(source: Source, width: usize) -> Input {
        Input {
            source,
            norm: None,
            parts: 1,
            single: false,
            interleaved: false,
            floats: false,
            width,
            slices: Vec::new(),
            made: Vec::new(),
            words: 0,
        }
    }

    /// Finds out what the matrices want and takes the scratch for it.
    fn with(mut self, slices: &[(usize, MatId)], packer: &mut Packer) -> Input {
        let program = packer.program;
        for &(at, weight) in slices {
            let matrix = program.matrix(weight);
            for rounding in matrix.segments.iter().map(|s| packer.activations.rounding(s.dtype())) {
                match rounding {
                    Rounding::None | Rounding::F16 => self.interleaved = true,
                    Rounding::Int8 | Rounding::Bf16 => self.make(at, matrix.n_in, rounding),
                }
            }
        }
        // Every matrix that meets a slice finds there what any of them wants.
        for &(at, weight) in slices {
            let width = program.matrix(weight).n_in;
            let made = |rounding| self.made.iter().position(|m| m.is(at, width, rounding));
            self.slices.push(Slice { at, width, ints: made(Rounding::Int8), pairs: made(Rounding::Bf16) });
        }
        let rows = room_for(packer.max_rows());
        packer.need(|s| &mut s.row_words, &[self.words, self.parts]);
        packer.need(|s| &mut s.shared_words, &[self.words, self.parts, rows]);
        if self.norm.is_some() {
            packer.need(|s| &mut s.normed, &[self.width]);
        }
        match (self.interleaved, self.single) {
            (false, _) => {}
            (true, false) => packer.need(|s| &mut s.shared_interleaved, &[self.width, rows]),
            (true, true) => packer.need(|s| &mut s.gathered_floats, &[self.width, rows]),
        }
        self
    }

    /// A slice rounded so is made, if it is not already.
    fn make(&mut self, at: usize, width: usize, rounding: Rounding) {
        if self.made.iter().any(|m| m.is(at, width, rounding)) {
            return;
        }
        let (words, words_before) = (Made::words_of(rounding, width).unwrap_or(usize::MAX), self.words);
        self.made.push(Made { at, width, rounding, words, words_before });
        self.words = self.words.saturating_add(words);
    }

    /// The same rows as floats, too.
    pub fn and_floats(mut self, packer: &mut Packer) -> Input {
        self.floats = true;
        if self.norm.is_some() {
            packer.need(|s| &mut s.shared_normed, &[self.width, packer.max_rows()]);
        }
        self
    }

    /// Rows of the source in this step.
    fn source_rows(&self, cx: &Ctx) -> usize {
        match self.source {
            Source::LogitRows(_) => cx.batch.logit_rows().len(),
            Source::Buffer(_) | Source::Work(_) => cx.batch.rows(),
        }
    }

    /// All rows as they are before the norm.
    fn rows<'a>(&self, cx: &Ctx<'a>) -> Rows<'a> {
        let rows = match self.source {
            // SAFETY: an op does not write what it reads in the stages that read it.
            Source::Buffer(x) => unsafe { cx.rows(x) },
            // SAFETY: as above.
            Source::LogitRows(x) => unsafe { cx.rows(x) }.picked(cx.batch.logit_rows()),
            Source::Work(width) => {
                let n = cx.batch.rows();
                // SAFETY: as above.
                Rows::new(unsafe { cx.memory.work.slice(0..n * width) }, width, width, n)
            }
        };
        if self.parts > 1 { rows.split(self.parts) } else { rows }
    }

    fn is_shared(&self, cx: &Ctx) -> bool {
        self.source_rows(cx) > 1 && (self.norm.is_some() || self.words > 0 || self.in_groups())
    }

    /// Whether rows are made groups of floats for all lanes. Rows that are picked one by one are not: each lane makes
    /// groups of those it picks.
    fn in_groups(&self) -> bool {
        self.interleaved && !self.single
    }

    /// Stages that `prepare` takes before `view` may be asked: one or none.
    pub fn stages(&self, cx: &Ctx) -> usize {
        usize::from(self.is_shared(cx))
    }

    /// Rows that `rows` rows take up in groups.
    fn room(&self, rows: usize) -> usize {
        if self.single { rows } else { room_for(rows) }
    }

    pub fn prepare(&self, cx: &Ctx, lane: &mut Lane) {
        let rows = self.rows(cx);
        let group = if self.single { 1 } else { GROUP };
        let groups = lane.items(rows.len().div_ceil(group));
        for first in groups.map(|g| g * group) {
            let last = (first + group).min(rows.len());
            let room = self.room(last - first);
            for row in first..last {
                let x = self.normed(cx, rows, row, lane.normed);
                if self.in_groups() {
                    let at = first * self.width;
                    // SAFETY: each group is written by one lane.
                    let group = unsafe { cx.memory.interleaved.slice_mut(at..at + room * self.width) };
                    if row == first && last - first < room {
                        group.fill(0.0);
                    }
                    interleave(x, group, room, row - first);
                }
                for made in &self.made {
                    let at = made.words_before * self.room(rows.len()) + first * made.words;
                    // SAFETY: each group is written by one lane.
                    let to = unsafe { cx.memory.words.slice_mut(at..at + room * made.words) };
                    if row == first && last - first < room {
                        to.fill(0);
                    }
                    made.put(cx.level, x, to, room, row - first);
                }
            }
        }
    }

    /// A row, normed into shared memory if the op wants floats and else into `scratch`.
    fn normed<'a>(&self, cx: &Ctx<'a>, rows: Rows<'a>, row: usize, scratch: &'a mut [f32]) -> &'a [f32] {
        let Some(norm) = &self.norm else { return rows.row(row) };
        let out = match self.floats {
            // SAFETY: each row is normed by one lane.
            true => unsafe { cx.memory.normed.slice_mut(row * self.width..(row + 1) * self.width) },
            false => &mut scratch[..self.width],
        };
        normalize(cx.level, cx.program, norm, rows.row(row), out);
        out
    }

    /// The rows; the scratch is the lane's for what one row of the source becomes.
    pub fn view<'a>(&'a self, cx: &Ctx<'a>, normed: &'a mut [f32], words: &'a mut [u32]) -> View<'a> {
        let rows = self.rows(cx);
        let n = rows.len();
        if self.is_shared(cx) {
            let floats = match (&self.norm, self.floats) {
                (None, _) => rows,
                (Some(_), true) => {
                    // SAFETY: written in an earlier stage.
                    let normed = unsafe { cx.memory.normed.slice(0..n * self.width) };
                    Rows::new(normed, self.width, self.width, n)
                }
                (Some(_), false) => Rows::none(),
            };
            // SAFETY: written in an earlier stage.
            let words = unsafe { cx.memory.words.slice(0..self.words * self.room(n)) };
            let floats_in_groups = if self.in_groups() { self.width * self.room(n) } else { 0 };
            // SAFETY: written in an earlier stage.
            let groups = unsafe { cx.memory.interleaved.slice(0..floats_in_groups) };
            let interleaved = FloatRows::new(groups, self.width, n);
            return View { input: self, floats, interleaved, words, rows: n };
        }
        let floats = match &self.norm {
            Some(norm) if n == 1 => {
                let out = &mut normed[..self.width];
                normalize(cx.level, cx.program, norm, rows.row(0), out);
                Rows::one(out)
            }
            _ => rows,
        };
        for made in &self.made {
            let to = &mut words[made.words_before * n..][..n * made.words];
            for (row, to) in to.chunks_exact_mut(made.words).enumerate() {
                made.put(cx.level, floats.row(row), to, 1, 0);
            }
        }
        let interleaved = if n == 1 { FloatRows::one(floats.row(0)) } else { FloatRows::none() };
        View { input: self, floats, interleaved, words, rows: n }
    }
}

impl<'a> View<'a> {
    fn words(&self, made: &Made) -> &'a [u32] {
        let room = self.input.room(self.rows);
        &self.words[made.words_before * room..][..made.words * room]
    }

    fn made(&self, number: Option<usize>) -> Option<&'a Made> {
        number.map(|n| &self.input.made[n])
    }

    /// What the weights of slice `i` are multiplied with.
    pub fn operand(&self, i: usize) -> Operand<'a> {
        let (slice, rows) = (&self.input.slices[i], self.rows);
        let ints = self.made(slice.ints).map_or(&[][..], |made| self.words(made));
        let pairs = self.made(slice.pairs);
        let floats = match self.input.in_groups() && rows > 0 {
            true => self.interleaved.columns(slice.at, slice.width),
            false => FloatRows::none(),
        };
        Operand {
            floats,
            pairs: pairs.map_or(PairRows::none(), |made| PairRows::new(self.words(made), made.words, rows)),
            ints: IntRows::new(ints, slice.width, rows),
            rows,
        }
    }

    /// The same of these rows of an input that is picked from.
    pub fn picked<'b>(
        &self,
        i: usize,
        rows: &'b [u32],
        gathered: &'b mut [u32],
        gathered_floats: &'b mut [f32],
    ) -> Operand<'b>
    where
        'a: 'b,
    {
        let slice = &self.input.slices[i];
        let floats = match self.input.interleaved {
            true => {
                let picked = self.floats.columns(slice.at, slice.width).picked(rows);
                FloatRows::gathered(picked, gathered_floats)
            }
            false => FloatRows::none(),
        };
        let single = |made: &'a Made| SingleRows { words: self.words(made), row_words: made.words };
        let pairs = self.made(slice.pairs);
        let for_pairs = pairs.map_or(0, |made| made.words * room_for(rows.len()));
        let (for_pairs, for_ints) = gathered.split_at_mut(for_pairs);
        let ints = self.made(slice.ints).map_or(&[][..], |made| single(made).gathered(rows, for_ints));
        let pairs = pairs.map_or(PairRows::none(), |made| {
            PairRows::new(single(made).gathered(rows, for_pairs), made.words, rows.len())
        });
        Operand { floats, pairs, ints: IntRows::new(ints, slice.width, rows.len()), rows: rows.len() }
    }
}
