//! `exotherm bench`: how fast a model runs here.

use std::time::Instant;

use anyhow::{Result, bail};
use exotherm_engine::{Engine, EngineConfig, Event, Request, Sampling};
use exotherm_kernels::{KvType, Program};
use exotherm_models::ModelInfo;
use serde_json::{Value, json};

use crate::Context;
use crate::args::{ComputeArgs, QuantizeArg, kv_types, positive};
use crate::output::Interrupted;
use crate::{model, output};

/// Measure the speed of reading a prompt and of writing
///
/// ppN reads a prompt of N tokens, tgN writes N tokens from an empty context, one at a time. Each runs once unmeasured,
/// then -r times; the median counts. Needs no tokenizer.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name, a path or hf:org/repo[/file]
    #[arg(value_name = "MODEL")]
    model: String,
    /// Tokens of the prompt; 0: leave this test out
    #[arg(short = 'p', long = "prompt", value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens to write; 0: leave this test out
    #[arg(short = 'n', long = "generate", value_name = "N", default_value_t = 128)]
    generate: usize,
    /// Measured runs of each test
    #[arg(short = 'r', long = "repeat", value_name = "N", default_value_t = 5, value_parser = positive)]
    repeat: usize,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_types())]
    kv_type: KvType,
    #[command(flatten)]
    quantize: QuantizeArg,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm bench smollm2
  exotherm bench model.gguf -p 2048 -n 0 -r 3 --threads 4
  exotherm bench ./folder --quantize q4_0 --json";

struct Test {
    name: String,
    samples: Vec<f64>,
}

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    if args.prompt == 0 && args.generate == 0 {
        return Err(output::UsageError("-p 0 -n 0 leaves nothing to measure".into()).into());
    }
    let begin = Instant::now();
    let mut checkpoint = model::open(cx, &args.model)?;
    let model = model::record(&mut checkpoint, args.quantize.quantize)?;
    checkpoint.give_back();
    drop(checkpoint);
    let threads = args.compute.threads();
    // A test's last token is not run, but has its place in the context.
    let ctx = args.prompt.max(args.generate).saturating_add(1);
    if let Some(most) = model.program.max_positions().filter(|&most| ctx > most) {
        bail!("this model has {most} positions, the tests need {ctx}; give smaller -p and -n");
    }
    let config = EngineConfig { kv_type: args.kv_type, ..EngineConfig::new(ctx) };
    let mut engine = Engine::new(&model.program, &*model::backend(&args.compute)?, config)?;
    let load_s = begin.elapsed().as_secs_f64();
    let (vocab, weight_bytes) = (model.program.vocab(), weight_bytes_per_token(&model.program));
    // The weights of the file are laid out by now; those made at load would count twice.
    drop(model.program);
    let mut tests = Vec::new();
    if args.prompt > 0 {
        let prompt = model::spread_ids(vocab, args.prompt);
        tests.push(measure(args, cx, &mut engine, &prompt, 1, format!("pp{}", args.prompt))?);
    }
    if args.generate > 0 {
        let prompt = model::spread_ids(vocab, 1);
        tests.push(measure(args, cx, &mut engine, &prompt, args.generate, format!("tg{}", args.generate))?);
    }
    if args.json {
        return output::json(&as_json(args, &model.info, &tests, threads, load_s, weight_bytes));
    }
    print_table(args, &tests, threads, load_s, weight_bytes)
}

fn measure(
    args: &Args,
    cx: &Context,
    engine: &mut Engine,
    prompt: &[u32],
    generate: usize,
    name: String,
) -> Result<Test> {
    let tokens = prompt.len().max(generate) as f64;
    let bar = output::steps(&name, args.repeat.saturating_add(1));
    let mut samples = Vec::new();
    for i in 0..=args.repeat {
        let seconds = time(cx, engine, prompt, generate)?;
        // The first run finds caches and memory cold.
        if i > 0 {
            samples.push(tokens / seconds);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Test { name, samples })
}

/// Seconds for one request, no token of which ends it.
fn time(cx: &Context, engine: &mut Engine, prompt: &[u32], generate: usize) -> Result<f64> {
    let request = Request {
        prompt: prompt.to_vec(),
        max_tokens: generate,
        sampling: Sampling::default(),
        stop_tokens: Vec::new(),
        hold: false,
    };
    let _watched = cx.interrupt.watch();
    let begin = Instant::now();
    engine.submit(request)?;
    loop {
        if cx.interrupt.pressed() {
            return Err(Interrupted.into());
        }
        if engine.step()?.iter().any(|event| matches!(event, Event::Finished { .. })) {
            return Ok(begin.elapsed().as_secs_f64());
        }
    }
}

/// Bytes of weight matrices that one token needs, all of them read once for a single token.
fn weight_bytes_per_token(program: &Program) -> usize {
    let mut bytes = 0;
    for op in program.ops() {
        op.for_each_matrix(program, &mut |id, rows| {
            let matrix = program.matrix(id);
            bytes += (matrix.bytes() as u128 * rows as u128 / matrix.n_out.max(1) as u128) as usize;
        });
    }
    bytes
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

fn as_json(
    args: &Args,
    info: &ModelInfo,
    tests: &[Test],
    threads: usize,
    load_s: f64,
    weight_bytes: usize,
) -> Value {
    let tests: Vec<_> = tests
        .iter()
        .map(|test| {
            json!({
                "test": test.name,
                "tok_s": median(&test.samples),
                "samples": test.samples,
                "threads": threads,
            })
        })
        .collect();
    let resident = exotherm_observe::resident_bytes();
    json!({
        "model": args.model,
        "family": info.family,
        "parameters": info.parameters,
        "backend": args.compute.backend.name(),
        "kv_type": args.kv_type.name(),
        "quantize": args.quantize.quantize.map(|to| to.name()),
        "tests": tests,
        "load_s": load_s,
        "weight_bytes_per_token": weight_bytes,
        "resident_bytes": resident.map(|r| r.current),
        "peak_resident_bytes": resident.map(|r| r.peak),
    })
}

fn print_table(args: &Args, tests: &[Test], threads: usize, load_s: f64, weight_bytes: usize) -> Result<()> {
    let mut rows = vec![["TEST", "TOK/S", "MIN", "MAX"].map(String::from).to_vec()];
    for test in tests {
        let fold = |f: fn(f64, f64) -> f64, start: f64| test.samples.iter().copied().fold(start, f);
        let numbers = [median(&test.samples), fold(f64::min, f64::INFINITY), fold(f64::max, 0.0)];
        let mut row = vec![test.name.clone()];
        row.extend(numbers.map(|n| format!("{n:.1}")));
        rows.push(row);
    }
    let resident = exotherm_observe::resident_bytes().map_or("unknown".into(), |r| output::size(r.current));
    let kind = args.compute.backend.name();
    output::text(format_args!(
        "{}\n\n{kind}, {threads} threads, kv {}, {} runs each\nload {load_s:.3} s, weights read per token {}, \
         resident memory {resident}",
        output::table(&rows),
        args.kv_type.name(),
        args.repeat,
        output::size(weight_bytes as u64),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_odd_and_even() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
