//! `exotherm selfcheck`: is what this machine computes right?

use anyhow::Result;
use exotherm_engine::selfcheck::{Divergence, Report, Tolerance, selfcheck};
use exotherm_engine::{EngineConfig, Evaluator};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{Backend, KvType, Program};
use exotherm_tokenizer::{Specials, Tokenizer, TokenizerError};
use serde_json::{Value, json};

use crate::Context;
use crate::args::{IsaArg, QuantizeArg, ThreadArgs, kv_types};
use crate::trace::traced;
use crate::{model, output};

/// Check the cpu backend against the reference on this machine
///
/// Both run a fixed text and write on greedily. Compared are every op's result for a prompt's step and for a single
/// token, the distributions at every position, and what each writes, which the two hashes stand for. The reference is
/// slow: minutes for models of some hundred million parameters. Exit code 1 if they disagree.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name, a path or hf:org/repo[/file]
    #[arg(value_name = "MODEL")]
    model: String,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = kv_types())]
    kv_type: KvType,
    #[command(flatten)]
    quantize: QuantizeArg,
    #[command(flatten)]
    threads: ThreadArgs,
    #[command(flatten)]
    isa: IsaArg,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm selfcheck smollm2
  exotherm selfcheck ./folder --kv-type f16 --quantize q8_0 --json";

/// Plain prose with names, numbers, code and other scripts in it, so that many kinds of tokens come up.
const TEXT: &str = "\
The lighthouse at the end of the pier was built in 1874 and has been repaired four times since. On clear evenings its \
keeper, a retired engineer called Marta Okafor, writes down the wind, the tide and the colour of the sky: \"NW 5, 1.2 m, \
copper\". Nobody asked her to; she simply likes to know. When the harbour office replaced the lamp, they sent a short \
program along, `for i in range(3): blink(i * 0.5)`, and a note in two languages (Vorsicht, heiß! / Attention, c'est \
chaud). She pinned the note to the door, under the photograph of a ship named Заря, and went back to counting waves.";
/// Tokens of the text that are run at most: the reference needs about a tenth of a second for each and 100 million
/// parameters.
const MOST_TOKENS: usize = 160;
/// Tokens that each writes on.
const GENERATED: usize = 24;
/// Steps of more rows than a step of the cpu kernels' tiles, and several of them.
const CHUNK: usize = 64;

/// How far `cpu` may be from `reference`, by how keys and values are stored.
///
/// In f32 the two differ only in the order and width of sums: f32 sums over a few thousand products are good to about
/// 1e-5 of the largest value, and errors grow over the layers. In f16 a key may round the other way where the two
/// differ in the last bit, half a unit in the 11th bit, 5e-4.
fn tolerance(kv_type: KvType) -> Tolerance {
    match kv_type {
        KvType::F32 => Tolerance { op_error: 2e-3, kl: 1e-5, flip: 1e-2 },
        KvType::F16 => Tolerance { op_error: 1e-2, kl: 1e-3, flip: 5e-2 },
    }
}

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    let mut checkpoint = model::open(cx, &args.model)?;
    let tokenizer = model::tokenizer(&checkpoint)?;
    let model = model::record(&mut checkpoint, args.quantize.quantize)?;
    checkpoint.give_back();
    drop(checkpoint);
    let context = model::context(&model.program, &model.info, None);
    let generated = GENERATED.min(context / 2);
    let tokens = tokens(tokenizer.as_ref(), &model.program, (context - generated).min(MOST_TOKENS))?;
    let config = EngineConfig {
        chunk: CHUNK,
        logit_rows: model::logit_rows(&model.program).min(CHUNK),
        kv_type: args.kv_type,
        ..EngineConfig::new(tokens.len() + generated)
    };
    let evaluator = |backend: &dyn Backend| Evaluator::new(&model.program, backend, &config);
    let mut reference = evaluator(&ReferenceBackend)?;
    let mut cpu = evaluator(&*traced(Box::new(model::cpu_backend(args.threads.count(), &args.isa)?)))?;
    let bar = output::steps("tokens", tokens.len() + generated);
    let tolerance = tolerance(args.kv_type);
    let report = selfcheck(&mut reference, &mut cpu, &tokens, generated, tolerance, |done, _| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let report = report?;
    match args.json {
        true => output::json(&as_json(args, &report))?,
        false => output::text(as_text(args, &report))?,
    }
    if !report.agrees() {
        anyhow::bail!(
            "cpu and reference disagree on {}; what it computes here is not to be trusted",
            args.model
        );
    }
    Ok(())
}

/// The fixed text; where there is no tokenizer, or one for a language that has not got its characters, ids spread over
/// the vocabulary.
fn tokens(tokenizer: Option<&Tokenizer>, program: &Program, most: usize) -> Result<Vec<u32>> {
    let mut tokens = match tokenizer.map(|tokenizer| tokenizer.encode(TEXT, Specials::ADD)) {
        Some(Ok(tokens)) => tokens,
        Some(Err(TokenizerError::Unencodable { .. })) | None => {
            model::spread_ids(program.vocab(), MOST_TOKENS)
        }
        Some(Err(error)) => return Err(error.into()),
    };
    tokens.truncate(most.max(1));
    Ok(tokens)
}

fn as_text(args: &Args, report: &Report) -> String {
    let tolerance = &report.tolerance;
    let op = |d: &Divergence| {
        format!("{:.1e}  (op {} {}, buffer {}, position {})", d.error, d.op, d.name, d.buffer, d.position)
    };
    let worst = report.worst_op.as_ref().map_or("none".to_string(), op);
    let first = report.first_divergence.as_ref().map_or("none".to_string(), op);
    let cell = |name: &str, value: String, limit: String| vec![name.to_string(), value, limit];
    let rows = [
        cell("", "measured".into(), "allowed".into()),
        cell("top-1 agreement", format!("{}/{}", report.agreements, report.positions), String::new()),
        cell("mean KL", format!("{:.1e}", report.mean_kl), String::new()),
        cell("max KL", format!("{:.1e}", report.max_kl), format!("{:.0e}", tolerance.kl)),
        cell("worst flip", format!("{:.1e}", report.worst_flip), format!("{:.0e}", tolerance.flip)),
        cell("worst op", format!("{:.1e}", worst_error(report)), format!("{:.0e}", tolerance.op_error)),
    ];
    format!(
        "{}: cpu against reference, kv {}\n\n{}\n\nworst op         {worst}\nfirst divergence {first}\n\
         hash reference   {}\nhash cpu         {}\n{}",
        args.model,
        args.kv_type.name(),
        output::table(&rows),
        report.reference_hash(),
        report.hash(),
        if report.agrees() { "they agree" } else { "THEY DISAGREE" },
    )
}

fn worst_error(report: &Report) -> f64 {
    report.worst_op.map_or(0.0, |d| d.error)
}

fn as_json(args: &Args, report: &Report) -> Value {
    // What is infinite, because something was no number, is null.
    let op = |d: Option<Divergence>| {
        d.map(|d| {
            json!({ "op": d.op, "name": d.name, "buffer": d.buffer, "position": d.position, "error": d.error })
        })
    };
    let tolerance = &report.tolerance;
    json!({
        "model": args.model,
        "kv_type": args.kv_type.name(),
        "agrees": report.agrees(),
        "positions": report.positions,
        "top1_agreement": report.top1_agreement(),
        "mean_kl": report.mean_kl,
        "max_kl": report.max_kl,
        "worst_flip": report.worst_flip,
        "worst_op": op(report.worst_op),
        "first_divergence": op(report.first_divergence),
        "reference_hash": report.reference_hash().to_string(),
        "hash": report.hash().to_string(),
        "reference_output": report.reference_output,
        "output": report.output,
        "tolerance": { "op_error": tolerance.op_error, "kl": tolerance.kl, "flip": tolerance.flip },
    })
}
