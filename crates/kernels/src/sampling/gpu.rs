//! Tokens chosen on a GPU, so that logits need not come back. The likeliest token of a row is found there, and it alone comes
//! back. Of rows that are asked for more their likely tokens come back, the weight of all, made in the same whole numbers as
//! everywhere (`gpu/wide.wgsl`), and the token that is drawn where all may be: what is left to be chosen among the likely ones
//! is chosen here. Where it cannot be shown that it lies among them, and where bias or penalties change the logits, the row comes
//! back as a whole and the CPU's sampler chooses.

mod records;

use super::weights::{EXP2, LOG2_UNIT, Weights};
use super::{SampleRow, Sampled, random};
use crate::backend::{BackendError, Limits};
use crate::gpu::{ASKED, Count, Kernel, Recorder, View};
use records::Record;

/// Tokens whose greatest logit, and whose weight, are made together.
const BLOCK: usize = 128;

/// Lanes that go through a row's blocks.
const LANES: usize = 256;

/// The most likely tokens of a row that are listed, and how many there should be at least.
const LIST: usize = 1024;
const FEWEST: usize = 256;

/// Words of what comes back of a row that was weighed.
pub(crate) const RECORD: usize = records::HEAD + 2 * LIST;

/// What stands for a token where there is none.
const NONE: u32 = u32::MAX;

/// Where what is chosen lies: a word for each row whose likeliest token is asked for, a record for each that is weighed.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub chosen: View,
    pub drawn: View,
}

/// Rows of which the likeliest token can be asked for in a step.
pub(crate) fn most_plain(limits: &Limits) -> usize {
    limits.logit_rows.max(1)
}

/// Rows that can be weighed in a step; who is asked for log-probabilities may be weighed twice.
pub(crate) fn most_weighed(limits: &Limits) -> usize {
    const MOST: usize = 256;
    most_plain(limits).saturating_mul(2).min(MOST)
}

pub(crate) fn most_asked(limits: &Limits) -> usize {
    most_plain(limits).saturating_add(most_weighed(limits))
}

pub(crate) fn record(recorder: &mut Recorder) -> Result<Choice, BackendError> {
    let (logits, width) = {
        let logits = recorder.program.logits();
        (recorder.buf(logits), recorder.width(logits))
    };
    let of_row = width.div_ceil(BLOCK);
    let (plain, weighed) = (most_plain(recorder.limits), most_weighed(recorder.limits));
    let blocks = recorder.room(&[2 * of_row, plain + weighed])?;
    let weights = recorder.room(&[2 * of_row, weighed])?;
    let (chosen, drawn) = (recorder.room(&[plain])?, recorder.room(&[RECORD, weighed])?);
    // They do not depend on the vocabulary: all programs of a device share them.
    let begun = |label, lanes| {
        let mut kernel = Kernel::new(label, lanes);
        kernel.size("BLOCK", BLOCK);
        kernel.size("RECORD", RECORD);
        kernel.size("HEAD", records::HEAD);
        kernel.size("LIST", LIST);
        kernel.size("FEWEST", FEWEST);
        kernel.part(include_str!("gpu/order.wgsl"));
        kernel.part(include_str!("gpu/wide.wgsl"));
        kernel.part(include_str!("gpu/sums.wgsl"));
        kernel.part(&coefficients());
        kernel.part(include_str!("gpu/weight.wgsl"));
        kernel
    };
    let mut kernel = begun("survey", BLOCK);
    kernel.read("logits", "u32", logits);
    kernel.write("blocks", "vec2<u32>", blocks);
    kernel.part(include_str!("gpu/survey.wgsl"));
    recorder.dispatch(&kernel, [Count::Fixed(of_row), Count::Asked, Count::Fixed(1)]);
    let mut kernel = begun("likeliest", LANES);
    kernel.read("blocks", "vec2<u32>", blocks);
    kernel.write("chosen", "u32", chosen);
    kernel.write("drawn", "u32", drawn);
    kernel.part(include_str!("gpu/likeliest.wgsl"));
    recorder.dispatch(&kernel, [Count::Asked, Count::Fixed(1), Count::Fixed(1)]);
    let mut kernel = begun("weigh", BLOCK);
    kernel.read("logits", "u32", logits);
    kernel.write("weights", "vec2<u32>", weights);
    kernel.write("drawn", "atomic<u32>", drawn);
    kernel.part(include_str!("gpu/weigh.wgsl"));
    recorder.dispatch(&kernel, [Count::Fixed(of_row), Count::Weighed, Count::Fixed(1)]);
    let mut kernel = begun("draw", LANES);
    kernel.read("logits", "u32", logits);
    kernel.read("weights", "vec2<u32>", weights);
    kernel.write("drawn", "u32", drawn);
    kernel.part(include_str!("gpu/draw.wgsl"));
    recorder.dispatch(&kernel, [Count::Weighed, Count::Fixed(1), Count::Fixed(1)]);
    Ok(Choice { chosen, drawn })
}

/// The coefficients of 2^r, the last first, as the kernels' floats of 64 bits.
fn coefficients() -> String {
    let wide = |value: &f64| {
        let (low, high) = words_of(value.to_bits());
        let power = i64::from(high >> 20) - 1075;
        format!("Wide(false, {power}, Long({low}u, {}u))", (high & 0xf_ffff) | 0x10_0000)
    };
    let values: Vec<String> = EXP2.iter().rev().map(wide).collect();
    let count = EXP2.len();
    format!(
        "const EXP2_COUNT: u32 = {count}u;\nconst LOG2_UNIT: i32 = {LOG2_UNIT};\n\
         const EXP2: array<Wide, {count}> = array<Wide, {count}>({});",
        values.join(", ")
    )
}

/// The low and the high word.
fn words_of(bits: u64) -> (u32, u32) {
    (bits as u32, (bits >> 32) as u32)
}

/// What is asked of the device in a step.
#[derive(Default)]
pub(crate) struct Asked {
    /// Where rows of logits begin and how many tokens of them there are, each pair once.
    plain: Vec<[u32; 2]>,
    weighed: Vec<[u32; ASKED]>,
    width: usize,
    /// How each row gets its token.
    ways: Vec<Way>,
}

/// How a row gets its token.
#[derive(Clone, Copy)]
enum Way {
    Likeliest(usize),
    /// From a record, and its log-probabilities from another.
    Weighed(usize, usize),
    /// From all of its logits.
    Whole,
}

impl Asked {
    /// Takes in what the device can do for rows, as long as there is room. `width` is that of a row of logits, of which so many
    /// are choices.
    pub fn gather(&mut self, rows: &[SampleRow], width: usize, choices: usize, limits: &Limits) {
        self.width = width;
        self.plain.clear();
        self.weighed.clear();
        self.ways.clear();
        for row in rows {
            let way = self.way_of(row, choices, limits);
            self.ways.push(way);
        }
    }

    fn way_of(&mut self, row: &SampleRow, choices: usize, limits: &Limits) -> Way {
        let pair = [(row.logits * self.width) as u32, choices.min(row.sampling.vocab) as u32];
        if row.wants_likeliest() {
            let known = self.plain.iter().position(|other| *other == pair);
            // There is room: they are at most as many as rows of logits, unless rows are cut short in several ways.
            if known.is_none() && self.plain.len() < most_plain(limits) {
                self.plain.push(pair);
                return Way::Likeliest(self.plain.len() - 1);
            }
            return known.map_or(Way::Whole, Way::Likeliest);
        }
        let sampling = row.sampling;
        if row.given.is_none() && (!sampling.logit_bias.is_empty() || sampling.penalizes()) {
            return Way::Whole;
        }
        let scale = |temperature| Weights::new(0.0, temperature).scale();
        let draws = row.given.is_none() && sampling.temperature > 0.0;
        // What is drawn from the first few need not be weighed there.
        let is_weighed = draws && !(row.logprobs.is_some() && sampling.limits_count(pair[1] as usize));
        let first = if is_weighed { scale(sampling.temperature) } else { scale(1.0) };
        let is_twice = row.logprobs.is_some() && first != scale(1.0);
        if self.weighed.len() + 1 + usize::from(is_twice) > most_weighed(limits) {
            return Way::Whole;
        }
        self.weighed.push(request(pair, row, first));
        if is_twice {
            self.weighed.push(request(pair, row, scale(1.0)));
        }
        let last = self.weighed.len() - 1;
        Way::Weighed(last - usize::from(is_twice), last)
    }

    pub fn plain(&self) -> usize {
        self.plain.len()
    }

    pub fn weighed(&self) -> usize {
        self.weighed.len()
    }

    /// Parts that a row of logits has.
    pub fn blocks(&self) -> usize {
        self.width.div_ceil(BLOCK)
    }

    pub fn words(&self) -> impl Iterator<Item = u32> {
        let plain = self.plain.iter().flat_map(|&[row, vocab]| {
            let mut words = [0; ASKED];
            (words[0], words[1]) = (row, vocab);
            words
        });
        plain.chain(self.weighed.iter().flatten().copied())
    }

    /// What came of row number `i`; `None` where all of its logits must be looked at.
    pub fn answer(&self, i: usize, row: &SampleRow, words: &[u32]) -> Option<Sampled> {
        let record = |at: usize| {
            let (_, records) = words.split_at(self.plain.len());
            Record { words: &records[at * RECORD..][..RECORD], vocab: self.weighed[at][1] as usize }
        };
        match self.ways[i] {
            Way::Likeliest(at) => {
                Some(Sampled { token: Some(words[at]).filter(|&token| token != NONE), logprobs: None })
            }
            Way::Weighed(first, told) => records::sampled(row, &record(first), &record(told)),
            Way::Whole => None,
        }
    }
}

/// How the device is asked to weigh a row: which and how many tokens of it, the factor of logits, the random bits of a draw, and
/// the token whose logit is wanted.
fn request([logits, vocab]: [u32; 2], row: &SampleRow, scale: f64) -> [u32; ASKED] {
    let (scale, bits) = (words_of(scale.to_bits()), random::bits(row.sampling.seed, row.position as u64));
    let bits = words_of(bits);
    [logits, vocab, scale.0, scale.1, bits.0, bits.1, row.given.unwrap_or(NONE), 0]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::weights::Weights;

    /// What all tokens weigh together.
    pub fn weight(logits: &[f32], temperature: f32) -> u64 {
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let weights = Weights::new(max, temperature);
        logits.iter().map(|&logit| weights.of(logit)).sum()
    }
}
