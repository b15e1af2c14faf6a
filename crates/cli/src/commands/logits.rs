//! `exotherm logits`: the model's raw numbers, for outside checks.

use anyhow::{Result, bail};
use exotherm_engine::{EngineConfig, Evaluator};
use exotherm_kernels::KvType;

use crate::Context;
use crate::args::{ComputeArgs, Numbers, QuantizeArg, kv_types, positive};
use crate::model;
use crate::output::Out;

/// Print the logits after given tokens
///
/// Needs no tokenizer. Activations that meet weights of floats are not rounded, not even where `run` would round them to
/// BF16, unless a level that does so is asked for (--isa avx512bf16). With --json every number is printed in the fewest
/// digits that read back as the same f32; rows are printed as they are made.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name, a path or hf:org/repo[/file]
    #[arg(value_name = "MODEL")]
    model: String,
    /// The tokens, as ids with commas between them
    #[arg(long, value_name = "IDS")]
    tokens: Numbers<u32>,
    /// After which tokens, counted from 0 [default: the last]
    #[arg(long, value_name = "POSITIONS")]
    positions: Option<Numbers<usize>>,
    /// Run the tokens in pieces of N [default: all at once, at most 512]
    #[arg(long, value_name = "N", value_parser = positive)]
    chunk: Option<usize>,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = kv_types())]
    kv_type: KvType,
    #[command(flatten)]
    quantize: QuantizeArg,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print {"positions":[…],"logits":[[…],…]}; without it, the ten likeliest tokens of each position
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm logits model.gguf --tokens 1,2,3 --json
  exotherm logits ./folder --tokens 1,2,3 --positions 0,2 --chunk 1 --backend reference --json
  exotherm logits smollm2 --tokens 504,7112 --quantize q8_0";

const DEFAULT_CHUNK: usize = 512;

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    let tokens = &args.tokens.0;
    let last = tokens.len() - 1;
    let positions = args.positions.as_ref().map_or_else(|| vec![last], |p| p.0.clone());
    if let Some(outside) = positions.iter().find(|&&p| p > last) {
        bail!("position {outside} is outside the {} tokens given; the last position is {last}", tokens.len());
    }
    let mut checkpoint = model::open(cx, &args.model)?;
    let model = model::record(&mut checkpoint, args.quantize.quantize)?;
    drop(checkpoint);
    let config = EngineConfig {
        chunk: args.chunk.unwrap_or(DEFAULT_CHUNK),
        logit_rows: model::logit_rows(&model.program),
        kv_type: args.kv_type,
        ..EngineConfig::new(tokens.len())
    };
    let mut evaluator =
        Evaluator::new(&model.program, &*model::backend_for_numbers(&args.compute)?, &config)?;
    drop(model);
    let mut out = Out::new();
    if args.json {
        print_json(&mut out, &mut evaluator, tokens, &positions)?;
    } else {
        let print = |out: &mut Out, position: usize, row: &[f32]| print_likeliest(out, position, row);
        each_row(&mut evaluator, tokens, &positions, |position, row| print(&mut out, position, row))?;
    }
    out.flush()
}

fn print_json(out: &mut Out, evaluator: &mut Evaluator, tokens: &[u32], positions: &[usize]) -> Result<()> {
    let mut first = true;
    each_row(evaluator, tokens, positions, |_, row| {
        // Nothing is printed before the first row is there, so that an error leaves stdout empty.
        if first {
            out.text(format_args!("{{\"positions\":{},\"logits\":[", serde_json::to_string(positions)?))?;
        } else {
            out.text(",")?;
        }
        first = false;
        out.numbers(row)
    })?;
    out.line("]}")
}

/// Hands over the logits at `positions`, in their order. Ascending positions are handed over as they come; others have
/// to be kept until all are there.
fn each_row(
    evaluator: &mut Evaluator,
    tokens: &[u32],
    positions: &[usize],
    mut each: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    let mut outcome = Ok(());
    let mut checked = |position: usize, row: &[f32]| {
        if outcome.is_ok() {
            outcome = match row.iter().all(|v| v.is_finite()) {
                true => each(position, row),
                false => Err(anyhow::anyhow!("the logits of position {position} are not all numbers")),
            };
        }
    };
    if positions.is_sorted_by(|a, b| a < b) {
        evaluator.logits(tokens, positions, &mut checked)?;
    } else {
        let mut rows = std::collections::BTreeMap::new();
        evaluator.logits(tokens, positions, |position, row| {
            rows.insert(position, row.to_vec());
        })?;
        positions.iter().for_each(|position| checked(*position, &rows[position]));
    }
    outcome
}

fn print_likeliest(out: &mut Out, position: usize, row: &[f32]) -> Result<()> {
    const SHOWN: usize = 10;
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_unstable_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    let shown: Vec<String> = order.iter().take(SHOWN).map(|&id| format!("{id} {:.4}", row[id])).collect();
    out.line(format_args!("position {position}: {}", shown.join("  ")))
}
