//! `exotherm bench`: how fast a model runs here.

mod split;

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use exotherm_engine::{Engine, Request};
use exotherm_kernels::profile::{Part, parts};
use exotherm_kernels::{BLOCK, Backend, KvType, Program};
use exotherm_models::{Model, ModelInfo};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::Context;
use crate::args::{ComputeArgs, Numbers, QuantizeArg, kv_types, positive, whole};
use crate::model;
use crate::output;

use split::Split;

/// Measure the speed of reading a prompt and of writing
///
/// ppN reads a prompt of N tokens, tgN writes N tokens from an empty context, one at a time. With --batch B, B sequences
/// write N tokens each in common steps, and tgN@bB is the speed of all of them together; with --depth D the context
/// already has D tokens (rounded up to whole blocks of 16), whose reading is not timed: tgN@dD. Each runs once unmeasured,
/// then -r times; the median counts. Needs no tokenizer.
///
/// With several batches SCALE is the speed next to that of the first of them, and each batch runs once more with clocks
/// inside: a table of what a step of it takes, in milliseconds, for writing keys and values (with the rotation before
/// it), attention (or a time mix), the projections around it, feed-forward blocks, the logits (`head`), and whatever
/// else there is (choosing tokens, planning). The parts sum to the total. `exotherm profile` shows more.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name, a path or hf:org/repo[/file]
    #[arg(value_name = "MODEL")]
    model: String,
    /// Tokens of the prompt; 0: leave this test out
    #[arg(short = 'p', long = "prompt", value_name = "N", default_value_t = 512, value_parser = whole::<usize>)]
    prompt: usize,
    /// Tokens to write; 0: leave this test out
    #[arg(short = 'n', long = "generate", value_name = "N", default_value_t = 128, value_parser = whole::<usize>)]
    generate: usize,
    /// Sequences that write at a time; several numbers: a test for each [default: 1]
    #[arg(short = 'b', long, value_name = "N,...", value_parser = batches)]
    batch: Option<Numbers<usize>>,
    /// Tokens in the context before writing begins; several numbers: a test for each [default: 0]
    #[arg(short = 'd', long, value_name = "N,...")]
    depth: Option<Numbers<usize>>,
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
  exotherm bench smollm2 --batch 1,2,4,8,16,32
  exotherm bench smollm2 -p 0 -n 64 --batch 1,16 --depth 0,4096
  exotherm bench ./folder --quantize q4_0 --json";

/// What is measured, and what came of it.
struct Test {
    name: String,
    kind: Kind,
    samples: Vec<f64>,
    split: Option<Split>,
}

#[derive(Clone, Copy)]
enum Kind {
    /// A prompt of so many tokens.
    Prompt(usize),
    /// `batch` sequences with `depth` tokens of context each write `tokens` each.
    Generate { tokens: usize, batch: usize, depth: usize },
}

impl Test {
    fn new(kind: Kind) -> Test {
        let name = match kind {
            Kind::Prompt(tokens) => format!("pp{tokens}"),
            Kind::Generate { tokens, batch, depth } => {
                let part = |sign, n, usual| if n == usual { String::new() } else { format!("@{sign}{n}") };
                format!("tg{tokens}{}{}", part('b', batch, 1), part('d', depth, 0))
            }
        };
        Test { name, kind, samples: Vec::new(), split: None }
    }

    fn batch(&self) -> usize {
        match self.kind {
            Kind::Prompt(_) => 1,
            Kind::Generate { batch, .. } => batch,
        }
    }

    fn depth(&self) -> usize {
        match self.kind {
            Kind::Prompt(_) => 0,
            Kind::Generate { depth, .. } => depth,
        }
    }

    /// Tokens that count: those read or written in the time that is taken.
    fn tokens(&self) -> f64 {
        match self.kind {
            Kind::Prompt(tokens) => tokens as f64,
            Kind::Generate { tokens, batch, .. } => tokens as f64 * batch as f64,
        }
    }

    /// Positions that a sequence needs. The last token is not run, but has its place in the context.
    fn context(&self) -> usize {
        match self.kind {
            Kind::Prompt(tokens) => tokens.saturating_add(1),
            Kind::Generate { tokens, depth, .. } => tokens.saturating_add(depth).saturating_add(1),
        }
    }
}

impl Args {
    fn batches(&self) -> &[usize] {
        self.batch.as_ref().map_or(&[1], |batch| &batch.0)
    }

    /// The tests that the options name, prompts first. An option that changes none of them is an error, and so is a test
    /// that is asked for twice.
    fn tests(&self) -> Result<Vec<Test>> {
        let mut kinds = Vec::new();
        if self.prompt > 0 {
            kinds.push(Kind::Prompt(self.prompt));
        }
        let tokens = self.generate;
        let depths = self.depth.as_ref().map_or(&[0][..], |depth| &depth.0);
        if tokens > 0 {
            for &depth in depths {
                let depth = model::whole_blocks(depth);
                kinds.extend(self.batches().iter().map(|&batch| Kind::Generate { tokens, batch, depth }));
            }
        }
        let tests: Vec<Test> = kinds.into_iter().map(Test::new).collect();
        let unused = [("--batch", self.batch.is_some()), ("--depth", self.depth.is_some())];
        let twice = (1..tests.len()).find(|&i| tests[..i].iter().any(|test| test.name == tests[i].name));
        let wrong = if tests.is_empty() {
            "-p 0 -n 0 leaves nothing to measure".into()
        } else if let Some((option, _)) = unused.iter().find(|(_, given)| *given && tokens == 0) {
            format!("{option} is about writing, which -n 0 leaves out")
        } else if let Some(i) = twice {
            format!("--batch and --depth (in whole blocks of {BLOCK}) ask for {} twice", tests[i].name)
        } else {
            return Ok(tests);
        };
        Err(output::UsageError(wrong).into())
    }
}

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    let mut tests = args.tests()?;
    let begin = Instant::now();
    let mut checkpoint = model::open(cx, &args.model)?;
    let model = model::record(&mut checkpoint, args.quantize.quantize)?;
    checkpoint.give_back();
    drop(checkpoint);
    let (backend, level) = model::backend_and_level(&args.compute)?;
    let mut engine = engine(args, &model, &tests, &*backend)?;
    let load_s = begin.elapsed().as_secs_f64();
    let (vocab, weight_bytes) = (model.program.vocab(), weight_bytes_per_token(&model.program));
    let parts = parts(&model.program);
    // The weights of the file are laid out by now; those made at load would count twice.
    drop(model.program);
    let mut bench =
        Bench { engine: &mut engine, cx, vocab, contexts: Vec::new(), steps: 0, op_nanos: Vec::new() };
    for test in &mut tests {
        let split = args.batches().len() > 1 && matches!(test.kind, Kind::Generate { .. });
        bench.measure(test, args.repeat, split.then_some(&parts))?;
    }
    let ran = Ran { args, tests, isa: args.compute.isa_of(level), load_s, weight_bytes };
    match args.json {
        true => output::json(&ran.as_json(&model.info)),
        false => ran.print_table(),
    }
}

/// An engine with room for every test.
fn engine(args: &Args, model: &Model, tests: &[Test], backend: &dyn Backend) -> Result<Engine> {
    let ctx = tests.iter().map(Test::context).max().unwrap_or(1);
    let batch = tests.iter().map(Test::batch).max().unwrap_or(1);
    if let Some(most) = model.program.max_positions().filter(|&most| ctx > most) {
        bail!("this model has {most} positions, the tests need {ctx}; give smaller -p, -n and --depth");
    }
    model::note_if_untrained(&model.program, &model.info, ctx, "the tests reach");
    let config = model::measured_config(ctx, batch, args.kv_type);
    model::measuring_engine(&model.program, backend, config, "-p, -n, --batch and --depth")
}

struct Bench<'a> {
    engine: &'a mut Engine,
    cx: &'a Context,
    vocab: usize,
    /// The contexts that are filled, each with the token after it.
    contexts: Vec<Vec<u32>>,
    /// Steps since a test began, and what each op took in them if clocks run.
    steps: u64,
    op_nanos: Vec<u64>,
}

impl Bench<'_> {
    /// Runs a test once to warm up, as often as is asked for, and once more with clocks if it is to be split.
    fn measure(&mut self, test: &mut Test, repeat: usize, parts: Option<&Vec<Part>>) -> Result<()> {
        let bar = output::steps(&test.name, repeat.saturating_add(1 + usize::from(parts.is_some())));
        self.contexts.clear();
        for i in 0..=repeat {
            let seconds = self.time(test.kind, &bar)?;
            // The first run finds caches and memory cold.
            if i > 0 {
                test.samples.push(test.tokens() / seconds);
            }
            bar.inc(1);
        }
        if let Some(parts) = parts {
            self.engine.executor().set_profiling(true);
            let seconds = self.time(test.kind, &bar)?;
            self.engine.executor().set_profiling(false);
            test.split = Some(Split::new(parts, &self.op_nanos, seconds, self.steps)?);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Begins what is timed.
    fn begin(&mut self) -> Instant {
        self.steps = 0;
        self.op_nanos.clear();
        Instant::now()
    }

    /// Seconds that the timed part of a test takes.
    fn time(&mut self, kind: Kind, bar: &ProgressBar) -> Result<f64> {
        match kind {
            Kind::Prompt(tokens) => {
                self.engine.forget_prefixes();
                let begin = self.begin();
                self.engine.submit(Request::new(model::spread_ids(self.vocab, tokens), 1))?;
                self.finish(1)?;
                Ok(begin.elapsed().as_secs_f64())
            }
            Kind::Generate { tokens, batch, depth: 0 } => {
                let first = model::spread_ids(self.vocab, batch);
                let begin = self.begin();
                for token in first {
                    self.engine.submit(Request::new(vec![token], tokens))?;
                }
                self.finish(batch)?;
                Ok(begin.elapsed().as_secs_f64())
            }
            Kind::Generate { tokens, batch, depth } => self.time_at_depth(tokens, batch, depth, bar),
        }
    }

    /// The engine remembers contexts of whole blocks, so nothing of them is read again: the first that runs in the timed
    /// part is the token after them.
    fn time_at_depth(&mut self, tokens: usize, batch: usize, depth: usize, bar: &ProgressBar) -> Result<f64> {
        if self.contexts.is_empty() {
            bar.set_message("reading the context");
            self.fill(batch, depth)?;
            bar.set_message("");
        }
        let before = self.engine.stats();
        let begin = self.begin();
        for context in &self.contexts {
            self.engine.submit(Request::new(context.clone(), tokens))?;
        }
        self.finish(batch)?;
        let seconds = begin.elapsed().as_secs_f64();
        let read = (self.engine.stats().prompt_tokens - before.prompt_tokens)
            - (self.engine.stats().cached_tokens - before.cached_tokens);
        ensure!(read == batch as u64, "{read} tokens were read anew for {batch} contexts of {depth}");
        Ok(seconds)
    }

    /// Reads `depth` tokens into each of `batch` sequences, all of them different.
    fn fill(&mut self, batch: usize, depth: usize) -> Result<()> {
        let ids = model::spread_ids(self.vocab, depth + batch);
        for i in 0..batch {
            // One token more than is read: it is the first that the timed part runs.
            let context = ids[i..=i + depth].to_vec();
            self.engine.submit(Request::new(context[..depth].to_vec(), 1))?;
            self.contexts.push(context);
        }
        self.finish(batch)
    }

    /// Steps until so many requests have ended.
    fn finish(&mut self, requests: usize) -> Result<()> {
        let steps = &mut self.steps;
        model::finish(self.cx, self.engine, requests, &mut self.op_nanos, |_| *steps += 1)
    }
}

/// Counts of sequences, 1 to 1,024 each.
fn batches(text: &str) -> Result<Numbers<usize>, String> {
    const MOST: usize = 1024;
    let numbers: Result<Numbers<usize>, String> = text.parse();
    match numbers {
        Ok(numbers) if numbers.0.iter().all(|n| (1..=MOST).contains(n)) => Ok(numbers),
        _ => Err(format!("whole numbers from 1 to {MOST} with commas between them are expected: 1,4,16")),
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

/// What came of the tests, and with what.
struct Ran<'a> {
    args: &'a Args,
    tests: Vec<Test>,
    /// None for a backend that has no choice of instructions.
    isa: Option<&'static str>,
    load_s: f64,
    weight_bytes: usize,
}

impl Ran<'_> {
    fn as_json(&self, info: &ModelInfo) -> Value {
        let args = self.args;
        let threads = args.compute.threads();
        let test = |test: &Test| {
            json!({
                "test": test.name,
                "tok_s": median(&test.samples),
                "samples": test.samples,
                "threads": threads,
                "batch": test.batch(),
                "depth": test.depth(),
                "split": test.split.as_ref().map(Split::as_json),
            })
        };
        let resident = exotherm_observe::resident_bytes();
        json!({
            "model": args.model,
            "family": info.family,
            "parameters": info.parameters,
            "backend": args.compute.backend.name(),
            "isa": self.isa,
            "threads": threads,
            "kv_type": args.kv_type.name(),
            "quantize": args.quantize.quantize.map(|to| to.name()),
            "tests": self.tests.iter().map(test).collect::<Vec<_>>(),
            "load_s": self.load_s,
            "weight_bytes_per_token": self.weight_bytes,
            "resident_bytes": resident.map(|r| r.current),
            "peak_resident_bytes": resident.map(|r| r.peak),
        })
    }

    fn print_table(&self) -> Result<()> {
        let Ran { args, tests, load_s, .. } = self;
        let compares = args.batches().len() > 1;
        let mut rows = vec![["TEST", "TOK/S", "MIN", "MAX"].map(String::from).to_vec()];
        if compares {
            rows[0].push("SCALE".into());
        }
        for test in tests {
            let fold = |f: fn(f64, f64) -> f64, start: f64| test.samples.iter().copied().fold(start, f);
            let numbers = [median(&test.samples), fold(f64::min, f64::INFINITY), fold(f64::max, 0.0)];
            let mut row = vec![test.name.clone()];
            row.extend(numbers.map(|n| format!("{n:.1}")));
            if compares {
                row.push(scale(tests, test).map_or_else(String::new, |scale| format!("{scale:.2}")));
            }
            rows.push(row);
        }
        let resident =
            exotherm_observe::resident_bytes().map_or("unknown".into(), |r| output::size(r.current));
        let splits: Vec<_> =
            tests.iter().filter_map(|t| Some((t.name.as_str(), t.split.as_ref()?))).collect();
        output::text(format_args!(
            "{}{}\n\n{}{}, {} threads, kv {}, {} runs each\nload {load_s:.3} s, weights read per token {}, \
             resident memory {resident}",
            output::table(&rows),
            split::as_text(&splits),
            args.compute.backend.name(),
            self.isa.map_or(String::new(), |isa| format!(" {isa}")),
            args.compute.threads(),
            args.kv_type.name(),
            args.repeat,
            output::size(self.weight_bytes as u64),
        ))
    }
}

/// How fast a test is next to the first with as much context before it.
fn scale(tests: &[Test], test: &Test) -> Option<f64> {
    let same = |other: &&Test| matches!(other.kind, Kind::Generate { .. }) && other.depth() == test.depth();
    let first = tests.iter().find(same).filter(|_| matches!(test.kind, Kind::Generate { .. }))?;
    Some(median(&test.samples) / median(&first.samples))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_named_after_what_is_not_usual() {
        let name = |batch, depth| Test::new(Kind::Generate { tokens: 64, batch, depth }).name;
        assert_eq!(name(1, 0), "tg64");
        assert_eq!(name(16, 0), "tg64@b16");
        assert_eq!(name(1, 4096), "tg64@d4096");
        assert_eq!(name(16, 128), "tg64@b16@d128");
        assert_eq!(Test::new(Kind::Prompt(512)).name, "pp512");
    }

    #[test]
    fn sequences_are_counted_in_a_sensible_range() {
        assert_eq!(batches("1,4, 16"), Ok(Numbers(vec![1, 4, 16])));
        for wrong in ["0", "4,0", "x", "", "1025", "-1"] {
            assert!(batches(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_median_of_odd_and_even() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
