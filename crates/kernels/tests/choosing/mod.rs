//! Executors that are given their logits, and ways to look at what they choose by them.
// Every test binary uses its own part of this.
#![allow(dead_code)]

use exotherm_kernels::{
    Backend, Batch, Executor, KvType, Limits, Place, Program, ProgramBuilder, SampleRow, Sampled, Sampling,
};

/// A program of no ops: its logits are what is written there.
pub fn program(vocab: usize) -> Program {
    let mut builder = ProgramBuilder::new();
    let logits = builder.logits_buffer(vocab);
    builder.finish(logits, vocab)
}

pub struct Chooser {
    program: Program,
    pub executor: Box<dyn Executor>,
    sampled: Vec<Sampled>,
}

impl Chooser {
    pub fn new(backend: &dyn Backend, vocab: usize, rows: usize) -> Chooser {
        let limits = Limits { rows, logit_rows: rows, blocks: 0, slots: 0, kv_type: KvType::F32 };
        let program = program(vocab);
        let executor = backend.compile(&program, &limits).expect("there is memory for it");
        Chooser { program, executor, sampled: Vec::new() }
    }

    /// Makes these the logits of the last run.
    pub fn show(&mut self, logits: &[Vec<f32>]) {
        let mut batch = Batch::default();
        batch.push_span(&vec![0; logits.len()], 0, &[], 0);
        (0..logits.len() as u32).for_each(|row| batch.want_logits(row));
        self.executor.run(&batch).expect("the batch is fine");
        self.executor.write(Place::Buffer(self.program.logits()), &logits.concat());
    }

    pub fn choose(&mut self, rows: &[SampleRow]) -> &[Sampled] {
        self.executor.sample(rows, &mut self.sampled).expect("the rows are fine");
        assert_eq!(self.sampled.len(), rows.len());
        &self.sampled
    }
}

/// A token to be chosen from row 0 after this history.
pub fn row<'a>(sampling: &'a Sampling, prompt: &'a [u32], output: &'a [u32]) -> SampleRow<'a> {
    let position = prompt.len() + output.len();
    SampleRow { logits: 0, sampling, prompt, output, position, logprobs: None, given: None }
}

pub fn warm() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::default() }
}

/// Pearson's statistic over the tokens that are expected at all; the others must not have been drawn.
pub fn chi_square(counts: &[f64], probabilities: &[f64]) -> f64 {
    let n: f64 = counts.iter().sum();
    let mut sum = 0.0;
    for (&count, &p) in counts.iter().zip(probabilities) {
        if p == 0.0 {
            assert_eq!(count, 0.0, "a token that was filtered out was drawn");
        } else {
            sum += (count - n * p).powi(2) / (n * p);
        }
    }
    sum
}
