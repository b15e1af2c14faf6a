//! Choosing tokens from vocabularies of SmolLM2's and Qwen2's sizes, for one sequence and for sixteen.

mod common;

use common::{Bench, Units, Work, values};
use exotherm_kernels::{
    Backend, Batch, KvType, Limits, Place, ProgramBuilder, SampleRow, Sampling, sampling::MAX_LOGPROBS,
};

const VOCABS: [usize; 2] = [49_152, 151_936];

/// About the spread that a model's logits have: a sum of uniform numbers.
fn logits(n: usize) -> Vec<f32> {
    values(4 * n).chunks_exact(4).map(|four| 2.2 * four.iter().sum::<f32>()).collect()
}

fn main() {
    let mut bench = Bench::new();
    let warm = || Sampling { temperature: 1.0, ..Sampling::default() };
    let usual = || Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, ..warm() };
    // How a token is chosen, and how many times all tokens are weighed for that.
    let ways = [
        ("greedy", Sampling::default(), None, 0),
        ("top-k 40, top-p 0.95", usual(), None, 0),
        ("the same with penalties", Sampling { repeat_penalty: 1.1, ..usual() }, None, 0),
        ("temperature 1", warm(), None, 1),
        ("temperature 1, logprobs", warm(), Some(MAX_LOGPROBS as u8), 1),
        ("top-p 0.95", Sampling { top_p: 0.95, ..warm() }, None, 2),
    ];
    let history: Vec<u32> = (0..2000).map(|i| i * 7919 % 3000).collect();
    for vocab in VOCABS {
        for rows in [1, 16] {
            let mut builder = ProgramBuilder::new();
            let buffer = builder.logits_buffer(vocab);
            let program = builder.finish(buffer, vocab);
            let limits = Limits { rows, logit_rows: rows, blocks: 0, slots: 0, kv_type: KvType::F16 };
            let mut executor = bench.backend().compile(&program, &limits).expect("there is memory for it");
            let mut batch = Batch::default();
            batch.push_span(&vec![0; rows], 0, &[], 0);
            (0..rows as u32).for_each(|row| batch.want_logits(row));
            executor.run(&batch).expect("the batch fits");
            executor.write(Place::Buffer(buffer), &logits(rows * vocab));
            for (name, sampling, logprobs, weighings) in &ways {
                let row = |logits| SampleRow {
                    logits,
                    sampling,
                    prompt: &history[..1500],
                    output: &history[1500..],
                    position: history.len(),
                    logprobs: *logprobs,
                    given: None,
                };
                let asked: Vec<SampleRow> = (0..rows).map(row).collect();
                let tokens = (rows * vocab) as f64;
                // A weight takes some thirty operations on numbers of twice the width.
                let operations = tokens * f64::from(2 + 2 * 34 * weighings);
                let work = Work { bytes: 4.0 * tokens, operations, units: Units::Floats };
                let mut sampled = Vec::new();
                bench.time(&format!("{vocab} tokens, {rows} rows"), name, work, || {
                    executor.sample(&asked, &mut sampled).expect("the rows are there");
                });
            }
        }
    }
    bench.end();
}
