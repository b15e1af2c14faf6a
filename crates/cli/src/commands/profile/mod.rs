//! `exotherm profile`: where a model's time goes, and what stands in the way of more.

mod phase;
mod report;

use anyhow::{Result, bail};
use exotherm_engine::Engine;
use exotherm_kernels::cpu::{CpuBackend, Speed};
use exotherm_kernels::profile::WorkCounter;
use exotherm_kernels::{Backend, KvType};
use exotherm_models::Model;

use crate::args::{BackendKind, ComputeArgs, QuantizeArg, kv_types, positive, whole};
use crate::commands::devices;
use crate::limits::{self, Limits, SECONDS};
use crate::output::note;
use crate::{Context, model, output};

use phase::{Phase, Runner};
use report::Report;

/// Show where a model's time goes, op by op, and which limit of the machine it meets
///
/// Reads a prompt of -p tokens and writes -n tokens behind such a prompt (rounded up to whole blocks of 16), each phase
/// by itself, once unmeasured and then -r times; the run of median length is shown. TIME is wall time between the ends
/// of two ops, with all threads; what is spent outside of ops (sampling, planning, waking threads) is `other`, and the
/// parts sum to the total.
///
/// BYTES are the weights and the state (keys, values, recurrent state) that the step needs, each counted once, or the
/// activations of an op that has neither; of a mixture of experts as many as were routed to at most. OPS are
/// multiplications and additions. LIMIT is the share of the time that the op would take if it went as fast as memory is
/// read or as the units compute, whichever is slower, and BINDS is that limit: `memory read`, `integer units`,
/// `BF16 units` or `float units`; `caches`, if the bytes came faster than memory is read; `cache/latency`, if the op is
/// at less than a third of either and something else holds it up. The limits are those that `exotherm devices --measure`
/// finds; the speed of memory is measured again before and after the run. A profiled run is slower than others by its
/// clocks.
///
/// With RUST_LOG=exotherm=trace in the environment this and every other command that runs a model print on stderr, for
/// each layer and step, what the parts of attention take.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name, a path or hf:org/repo[/file]
    #[arg(value_name = "MODEL")]
    model: String,
    /// Tokens of the prompt; 0: leave this phase out
    #[arg(short = 'p', long = "prompt", value_name = "N", default_value_t = 512, value_parser = whole::<usize>)]
    prompt: usize,
    /// Tokens to write; 0: leave this phase out
    #[arg(short = 'n', long = "generate", value_name = "N", default_value_t = 64, value_parser = whole::<usize>)]
    generate: usize,
    /// Sequences that read and write together
    #[arg(short = 'b', long, value_name = "N", default_value_t = 1, value_parser = positive)]
    batch: usize,
    /// Measured runs
    #[arg(short = 'r', long = "repeat", value_name = "N", default_value_t = 3, value_parser = positive)]
    repeat: usize,
    /// Show every op of the program, not only every kind
    #[arg(long)]
    per_op: bool,
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
  exotherm profile smollm2
  exotherm profile model.gguf -p 0 -n 128 --batch 16 --threads 4
  exotherm profile model.gguf -p 2048 -n 0 --isa avx2 --per-op
  exotherm profile ./folder --quantize q4_0 --json";

/// What the machine can do, as far as it is known: nothing of it where another backend than the cpu's computes.
struct Machine {
    backend: CpuBackend,
    limits: Limits,
    before: Speed,
    after: Speed,
    /// Of a buffer as large as the weights, where those are smaller than the large buffer.
    weights: Option<Speed>,
}

/// Seconds for which the speed of memory is measured before and after.
const BRIEFLY: f64 = 0.3;

impl Machine {
    fn measure(args: &Args, weight_bytes: usize) -> Result<Option<Machine>> {
        if args.compute.backend != BackendKind::Cpu {
            return Ok(None);
        }
        let backend = model::cpu_backend(args.compute.threads(), &args.compute.isa)?;
        let limits = match Limits::cached(&backend) {
            Some(limits) => limits,
            None => {
                note(format_args!(
                    "note: measuring this machine's limits for {} threads at {}, once",
                    backend.threads(),
                    backend.level(),
                ));
                devices::measured(&backend, SECONDS, false)?
            }
        };
        let before = limits::read_speed(&backend, BRIEFLY)?;
        let weights = match weight_bytes < limits::buffer_bytes() / 2 {
            true => Some(backend.read_speed(weight_bytes, std::time::Duration::from_secs_f64(BRIEFLY))?),
            false => None,
        };
        Ok(Some(Machine { backend, limits, before, after: before, weights }))
    }
}

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    if args.prompt == 0 && args.generate == 0 {
        return Err(output::UsageError("-p 0 -n 0 leaves nothing to measure".into()).into());
    }
    let mut checkpoint = model::open(cx, &args.model)?;
    let model = model::record(&mut checkpoint, args.quantize.quantize)?;
    checkpoint.give_back();
    drop(checkpoint);
    let backend = model::backend(&args.compute)?;
    let work = WorkCounter::new(&model.program, args.kv_type, backend.activations());
    let mut engine = engine(args, &model, &*backend)?;
    let (vocab, weight_bytes) = (model.program.vocab(), model.program.weight_bytes());
    // The weights of the file are laid out by now; those made at load would count twice.
    let program = model.program.without_weights(&|_| false);
    drop(model.program);
    let mut machine = Machine::measure(args, weight_bytes)?;
    let phases = phases(args, cx, &mut engine, vocab)?;
    if let Some(machine) = &mut machine {
        machine.after = limits::read_speed(&machine.backend, BRIEFLY)?;
    }
    let report = Report { args, info: &model.info, program: &program, machine, phases, work, weight_bytes };
    if let Some(doubt) = report.doubt() {
        note(doubt);
    }
    match args.json {
        true => output::json(&report.as_json()),
        false => output::text(report.as_text()),
    }
}

fn engine(args: &Args, model: &Model, backend: &dyn Backend) -> Result<Engine> {
    let program = &model.program;
    // The last token is not run, but has its place in the context.
    let ctx = model::whole_blocks(args.prompt).saturating_add(args.generate).saturating_add(1);
    if let Some(most) = program.max_positions().filter(|&most| ctx > most) {
        bail!("this model has {most} positions, the profile needs {ctx}; give smaller -p and -n");
    }
    model::note_if_untrained(program, &model.info, ctx, "the profile reaches");
    let config = model::measured_config(ctx, args.batch, args.kv_type);
    model::measuring_engine(program, backend, config, "-p, -n and --batch")
}

/// Of each phase the run of median length.
fn phases(args: &Args, cx: &Context, engine: &mut Engine, vocab: usize) -> Result<Vec<Phase>> {
    let bar = output::steps("runs", args.repeat.saturating_add(1));
    engine.executor().set_profiling(true);
    let mut runner =
        Runner { engine, cx, vocab, prompt: args.prompt, generate: args.generate, batch: args.batch };
    let mut runs: Vec<Vec<Phase>> = Vec::new();
    for i in 0..=args.repeat {
        let phases = runner.run()?;
        // The first run finds caches and memory cold.
        if i > 0 {
            runs.push(phases);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut kinds: Vec<Vec<Phase>> = Vec::new();
    for run in runs {
        for (i, phase) in run.into_iter().enumerate() {
            match kinds.get_mut(i) {
                Some(same) => same.push(phase),
                None => kinds.push(vec![phase]),
            }
        }
    }
    let median = |mut same: Vec<Phase>| {
        same.sort_by_key(|phase| phase.nanos);
        let middle = same.len() / 2;
        same.swap_remove(middle)
    };
    Ok(kinds.into_iter().map(median).collect())
}
