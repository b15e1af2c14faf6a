//! The rows that an op multiplies weights with: normed where the op norms them, in groups, as integers where the weights are
//! quantized and as floats where they are not. Many rows are made ready by all lanes before a barrier; one row every lane makes ready for itself, which is
//! cheaper than the barrier and gives the same bits.

use exotherm_tensor::DType;

use super::context::{Ctx, Lane};
use super::groups::{FloatRows, GROUP, interleave, room_for};
use super::integers::{self, IntRows, SingleRows, words_of};
use super::pack::Packer;
use super::rows::Rows;
use super::vector::normalize;
use crate::ops::Norm;
use crate::program::{Buf, MatId};

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
    /// Whether there are quantized weights that it meets.
    ints: bool,
    /// Whether no slice before it is the same.
    is_first: bool,
    /// Words of a row of the slices before it.
    words_before: usize,
}

pub(crate) struct Input {
    source: Source,
    norm: Option<Norm>,
    /// Rows that each row of the source is cut into.
    parts: usize,
    /// Whether every row of integers is a group of its own, for rows that are picked one by one.
    single: bool,
    /// Whether there are weights that want floats.
    interleaved: bool,
    /// Whether the op itself wants rows as floats.
    floats: bool,
    /// Width of a row.
    width: usize,
    slices: Vec<Slice>,
    /// Words of a row of all slices.
    words: usize,
}

/// Rows as the weights of a matrix want them.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    /// Empty if no weights want floats.
    pub floats: FloatRows<'a>,
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
        let slices = Vec::new();
        Input {
            source,
            norm: None,
            parts: 1,
            single: false,
            interleaved: false,
            floats: false,
            width,
            slices,
            words: 0,
        }
    }

    /// Finds out what the matrices want and takes the scratch for it.
    fn with(mut self, slices: &[(usize, MatId)], packer: &mut Packer) -> Input {
        let program = packer.program;
        let types = |weight| program.matrix(weight).segments.iter().map(|s| s.dtype());
        for &(at, weight) in slices {
            let width = program.matrix(weight).n_in;
            self.interleaved |= types(weight).any(|t| !t.is_quantized());
            if let Some(same) = self.slices.iter().find(|s| (s.at, s.width) == (at, width)) {
                self.slices.push(Slice { is_first: false, ..*same });
                continue;
            }
            // Every matrix that meets this slice finds integers there if one of them wants some.
            let alike = slices.iter().filter(|s| (s.0, program.matrix(s.1).n_in) == (at, width));
            let ints = alike.flat_map(|s| types(s.1)).any(DType::is_quantized);
            self.slices.push(Slice { at, width, ints, is_first: true, words_before: self.words });
            if ints {
                self.words = self.words.saturating_add(words_of(width, 1).unwrap_or(usize::MAX));
            }
        }
        let rows = room_for(packer.max_rows());
        packer.need(|s| &mut s.ints, &[self.words, self.parts]);
        packer.need(|s| &mut s.shared_ints, &[self.words, self.parts, rows]);
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
                for slice in self.made() {
                    let words = words_of(slice.width, 1).unwrap_or(0);
                    let at = slice.words_before * self.room(rows.len()) + first * words;
                    // SAFETY: each group is written by one lane.
                    let to = unsafe { cx.memory.ints.slice_mut(at..at + room * words) };
                    if row == first && last - first < room {
                        to.fill(0);
                    }
                    let x = &x[slice.at..slice.at + slice.width];
                    integers::quantize(cx.level, x, to, room, row - first);
                }
            }
        }
    }

    /// The slices of which integers are made.
    fn made(&self) -> impl Iterator<Item = &Slice> {
        self.slices.iter().filter(|slice| slice.ints && slice.is_first)
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
    pub fn view<'a>(&'a self, cx: &Ctx<'a>, normed: &'a mut [f32], ints: &'a mut [u32]) -> View<'a> {
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
            let words = unsafe { cx.memory.ints.slice(0..self.words * self.room(n)) };
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
        for slice in self.made() {
            let words = words_of(slice.width, 1).unwrap_or(0);
            let to = &mut ints[slice.words_before * n..][..n * words];
            for (row, to) in to.chunks_exact_mut(words).enumerate() {
                integers::quantize(cx.level, &floats.row(row)[slice.at..][..slice.width], to, 1, 0);
            }
        }
        let interleaved = if n == 1 { FloatRows::one(floats.row(0)) } else { FloatRows::none() };
        View { input: self, floats, interleaved, words: ints, rows: n }
    }
}

impl<'a> View<'a> {
    fn words(&self, slice: &Slice) -> &'a [u32] {
        let room = self.input.room(self.rows);
        let words = if slice.ints { words_of(slice.width, room).unwrap_or(0) } else { 0 };
        &self.words[slice.words_before * room..][..words]
    }

    /// What the weights of slice `i` are multiplied with.
    pub fn operand(&self, i: usize) -> Operand<'a> {
        let slice = &self.input.slices[i];
        let ints = IntRows::new(self.words(slice), slice.width, self.rows);
        let floats = match self.input.in_groups() && self.rows > 0 {
            true => self.interleaved.columns(slice.at, slice.width),
            false => FloatRows::none(),
        };
        Operand { floats, ints, rows: self.rows }
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
        let single = SingleRows { words: self.words(slice), width: slice.width };
        let ints = match slice.ints {
            true => single.gathered(rows, gathered),
            false => IntRows::new(&[], slice.width, rows.len()),
        };
        Operand { floats, ints, rows: rows.len() }
    }
}
