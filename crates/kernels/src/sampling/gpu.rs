//! Tokens chosen on a GPU. The likeliest token of a row is found there, and it alone comes back; rows that are asked for more
//! send their logits, and the CPU's sampler chooses.

use super::SampleRow;
use crate::backend::BackendError;
use crate::gpu::{ASKED, Count, Kernel, Recorder, View};

/// Tokens whose greatest logit is looked for together.
const BLOCK: usize = 256;

/// What stands for a row in which there is no likeliest token.
const NONE: u32 = u32::MAX;

/// Where what is chosen lies.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub chosen: View,
}

pub(crate) fn record(recorder: &mut Recorder) -> Result<Choice, BackendError> {
    let (logits, width) = {
        let logits = recorder.program.logits();
        (recorder.buf(logits), recorder.width(logits))
    };
    let of_row = width.div_ceil(BLOCK);
    let (blocks, chosen) = (recorder.logits_scratch(2 * of_row)?, recorder.logits_scratch(1)?);
    let mut kernel = Kernel::new("survey", BLOCK);
    kernel.read("logits", "u32", logits);
    kernel.write("blocks", "vec2<u32>", blocks);
    kernel.size("WIDTH", width);
    kernel.size("BLOCKS", of_row);
    kernel.part(include_str!("gpu/order.wgsl"));
    kernel.part(include_str!("gpu/survey.wgsl"));
    recorder.dispatch(&kernel, [Count::Fixed(of_row), Count::Asked, Count::Fixed(1)]);
    let mut kernel = Kernel::new("likeliest", BLOCK);
    kernel.read("blocks", "vec2<u32>", blocks);
    kernel.write("chosen", "u32", chosen);
    kernel.size("BLOCKS", of_row);
    kernel.part(include_str!("gpu/order.wgsl"));
    kernel.part(include_str!("gpu/likeliest.wgsl"));
    recorder.dispatch(&kernel, [Count::Asked, Count::Fixed(1), Count::Fixed(1)]);
    Ok(Choice { chosen })
}

/// What is asked of the device in a step: rows of logits and how many tokens of them there are, each pair once.
#[derive(Default)]
pub(crate) struct Asked {
    pairs: Vec<[u32; 2]>,
}

impl Asked {
    /// Takes in the rows whose likeliest token is wanted and no more, as long as there is room.
    pub fn gather(&mut self, rows: &[SampleRow], choices: usize, room: usize) {
        self.pairs.clear();
        for pair in rows.iter().filter(|row| row.wants_likeliest()).map(|row| pair_of(row, choices)) {
            if self.pairs.len() < room && !self.pairs.contains(&pair) {
                self.pairs.push(pair);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    pub fn words(&self) -> impl Iterator<Item = u32> {
        self.pairs.iter().flat_map(|&[row, vocab]| {
            let mut words = [0; ASKED];
            (words[0], words[1]) = (row, vocab);
            words
        })
    }

    /// The token of a row that was asked for, or that there is none; `None` where it was not.
    pub fn answer(&self, row: &SampleRow, choices: usize, chosen: &[u32]) -> Option<Option<u32>> {
        let at =
            self.pairs.iter().position(|pair| row.wants_likeliest() && *pair == pair_of(row, choices))?;
        Some(Some(chosen[at]).filter(|&token| token != NONE))
    }
}

fn pair_of(row: &SampleRow, choices: usize) -> [u32; 2] {
    [row.logits as u32, choices.min(row.sampling.vocab) as u32]
}
