//! `exotherm perplexity`: how well a model foretells a text.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use exotherm_engine::perplexity::perplexity;
use exotherm_engine::{EngineConfig, Evaluator};
use exotherm_kernels::KvType;
use exotherm_tokenizer::Specials;
use serde_json::json;

use crate::Context;
use crate::args::{ComputeArgs, QuantizeArg, kv_types, positive};
use crate::{model, output};

/// Measure how well a model foretells a text
///
/// Computed as llama.cpp's perplexity tool does: windows of --ctx tokens, the first half of each only as context.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name, a path or hf:org/repo[/file]
    #[arg(value_name = "MODEL")]
    model: String,
    /// The text
    #[arg(long, value_name = "F")]
    file: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    ctx: usize,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_types())]
    kv_type: KvType,
    #[command(flatten)]
    quantize: QuantizeArg,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print {"perplexity":…,"stderr":…,"tokens":…}
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm perplexity smollm2 --file book.txt
  exotherm perplexity model-f16.gguf --file book.txt --quantize q4_k --json";

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    let text = fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let mut checkpoint = model::open(cx, &args.model)?;
    let tokenizer = model::need_tokenizer(&checkpoint)?;
    let tokens = tokenizer.encode_bytes(&text, Specials::ADD)?;
    // The vocabulary adds a BOS if it puts one even before an empty text.
    let added = tokenizer.encode("", Specials::ADD)?;
    let bos = tokenizer.bos().filter(|bos| added.first() == Some(bos));
    let model = model::record(&mut checkpoint, args.quantize.quantize)?;
    checkpoint.give_back();
    drop(checkpoint);
    let config = EngineConfig {
        logit_rows: model::logit_rows(&model.program),
        kv_type: args.kv_type,
        ..EngineConfig::new(args.ctx)
    };
    let mut evaluator = Evaluator::new(&model.program, &*model::backend(&args.compute)?, &config)?;
    drop(model);
    let bar = output::steps("windows", tokens.len() / args.ctx);
    let measured = perplexity(&mut evaluator, &tokens, args.ctx, bos, |so_far| {
        bar.set_message(format!("perplexity so far {:.4}", so_far.value));
        bar.set_position(so_far.windows as u64);
    });
    bar.finish_and_clear();
    let measured = measured?;
    if args.json {
        return output::json(&json!({
            "perplexity": measured.value,
            "stderr": measured.stderr,
            "tokens": measured.tokens,
            "windows": measured.windows,
            "ctx": args.ctx,
        }));
    }
    output::text(format_args!(
        "perplexity {:.4} ± {:.4} over {} tokens in {} windows of {}",
        measured.value, measured.stderr, measured.tokens, measured.windows, args.ctx
    ))
}
