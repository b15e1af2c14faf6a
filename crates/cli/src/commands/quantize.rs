//! `exotherm quantize`: a GGUF file in another type.

use std::path::PathBuf;

use anyhow::Result;
use exotherm_tensor::DType;
use exotherm_weights::{QuantizeOptions, quantize_gguf};
use serde_json::json;

use crate::Context;
use crate::args::{ThreadArgs, dtype};
use crate::{model, output};

/// Write a GGUF file with its weight matrices in another type
///
/// Norms, biases and other small tensors stay as they are. The file can be loaded by other engines too. Interrupted, it
/// leaves no file behind.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A GGUF file, any part of a split one, or the name of a known model
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k or q6_k
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    to: DType,
    /// Replace OUT if it is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm quantize model-f16.gguf model-q4_k.gguf --to q4_k
  exotherm quantize model-f16-00001-of-00002.gguf model-q8_0.gguf --to q8_0 --force";

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    let options = QuantizeOptions { to: args.to, threads: args.threads.count(), force: args.force };
    let bar = output::quiet_progress();
    let mut told = 0;
    let mut progress = |done: u64, total: u64| {
        if told == 0 {
            bar.begin(&format!("writing {}", args.output.display()), Some(total));
        }
        bar.advance(done - told);
        told = done;
    };
    let input = model::local_file(cx, &args.input)?;
    let watched = cx.interrupt.watch();
    let summary = quantize_gguf(&input, &args.output, &options, &mut progress, cx.interrupt.flag());
    bar.finish();
    let summary = summary?;
    drop(watched);
    if args.json {
        let fell_back: Vec<_> =
            summary.fell_back.iter().map(|(name, to)| json!({ "tensor": name, "type": to.name() })).collect();
        return output::json(&json!({
            "path": args.output.display().to_string(),
            "to": args.to.name(),
            "tensors": summary.tensors,
            "converted": summary.converted,
            "fell_back": fell_back,
            "bytes_in": summary.bytes_in,
            "bytes_out": summary.bytes_out,
        }));
    }
    note_fallbacks(args, &summary.fell_back);
    output::text(format_args!(
        "{}: {} of {} tensors converted to {}, {} -> {}",
        args.output.display(),
        summary.converted,
        summary.tensors,
        args.to,
        output::size(summary.bytes_in),
        output::size(summary.bytes_out),
    ))
}

/// Tells in one line which tensors are of other types, as many as a line holds.
fn note_fallbacks(args: &Args, fell_back: &[(String, DType)]) {
    const SHOWN: usize = 3;
    if fell_back.is_empty() {
        return;
    }
    let names: Vec<String> =
        fell_back.iter().take(SHOWN).map(|(name, to)| format!("{name} is {to}")).collect();
    let more = if fell_back.len() > SHOWN { ", …; --json lists them all" } else { "" };
    output::note(format_args!(
        "note: the rows of {} tensors hold no whole blocks of {}: {}{more}",
        fell_back.len(),
        args.to,
        names.join(", ")
    ));
}
