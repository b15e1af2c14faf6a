//! `exotherm inspect`: what a model is, and what it will take.

use std::fmt::Write as _;

use anyhow::Result;
use exotherm_engine::{EngineConfig, MemoryPlan};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::{KvType, Op, Program};
use exotherm_models::{Model, ModelInfo};
use exotherm_tensor::DType;
use exotherm_weights::{Checkpoint, Format};
use serde_json::{Value, json};

use crate::Context;
use crate::args::{ThreadArgs, kv_types, positive};
use crate::{model, output};

/// Show a model's family, sizes, types, memory plan and operations
///
/// Of a file that cannot be run (a vocabulary alone, an unknown family) it shows what can be known, and why it cannot.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name, a path or hf:org/repo[/file]
    #[arg(value_name = "MODEL")]
    model: String,
    /// Context of the memory plan [default: what `run` takes]
    #[arg(long, value_name = "N", value_parser = positive)]
    ctx: Option<usize>,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_types())]
    kv_type: KvType,
    /// Each thread that computes has some memory of its own
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm inspect smollm2
  exotherm inspect model.gguf --ctx 32768 --kv-type f32
  exotherm inspect ./folder --json";

/// What the files say, whether they can be run or not.
struct Files {
    format: &'static str,
    paths: Vec<String>,
    architecture: Option<String>,
    name: Option<String>,
    tensors: usize,
    tensor_bytes: u64,
    /// Tensors and elements of each type; `None` for a type that no weight has.
    types: Vec<(Option<DType>, usize, u64)>,
    tokenizer: Option<String>,
}

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    let mut checkpoint = model::open(cx, &args.model)?;
    let files = Files::of(&checkpoint);
    let model = model::record(&mut checkpoint, None);
    let plan = model.as_ref().ok().map(|model| {
        let ctx = model::context(&model.program, &model.info, args.ctx);
        let config = EngineConfig { kv_type: args.kv_type, ..EngineConfig::new(ctx) };
        let backend = CpuBackend::new(args.threads.count());
        (ctx, MemoryPlan::new(&model.program, &backend, &config))
    });
    match args.json {
        true => output::json(&as_json(args, &files, &model, plan)),
        false => output::text(as_text(args, &files, &model, plan)),
    }
}

impl Files {
    fn of(checkpoint: &Checkpoint) -> Files {
        let metadata = checkpoint.metadata();
        let mut types: Vec<(Option<DType>, usize, u64)> = Vec::new();
        for name in checkpoint.names() {
            let info = checkpoint.info(name);
            let elements = info.map_or(0, |(_, shape)| shape.iter().map(|&n| n as u64).product());
            let dtype = info.map(|(dtype, _)| dtype);
            match types.iter_mut().find(|(t, ..)| *t == dtype) {
                Some((_, tensors, sum)) => (*tensors, *sum) = (*tensors + 1, *sum + elements),
                None => types.push((dtype, 1, elements)),
            }
        }
        let config = |key: &str| checkpoint.config().and_then(|c| c.get(key)).and_then(Value::as_str);
        let tokenizer = match checkpoint.format() {
            Format::Gguf => metadata.str("tokenizer.ggml.model").map(|kind| {
                let pre =
                    metadata.str("tokenizer.ggml.pre").map(|pre| format!(", {pre}")).unwrap_or_default();
                let tokens = metadata.array("tokenizer.ggml.tokens").map_or(0, |tokens| tokens.len());
                format!("{kind}{pre}, {tokens} tokens")
            }),
            Format::Safetensors => {
                checkpoint.dir().join("tokenizer.json").is_file().then(|| "tokenizer.json".to_string())
            }
        };
        Files {
            format: match checkpoint.format() {
                Format::Gguf => "gguf",
                Format::Safetensors => "safetensors",
            },
            paths: checkpoint.files().map(|path| path.display().to_string()).collect(),
            architecture: metadata.str("general.architecture").or(config("model_type")).map(str::to_string),
            name: metadata.str("general.name").map(str::to_string),
            tensors: checkpoint.names().count(),
            tensor_bytes: checkpoint.tensor_bytes(),
            types,
            tokenizer,
        }
    }
}

fn type_name(dtype: Option<DType>) -> &'static str {
    dtype.map_or("(no weight type)", DType::name)
}

/// What each layer does, layers that do the same together: how many, and the names of their ops. Ops outside of layers
/// stand alone.
fn op_groups(program: &Program) -> Vec<(usize, Vec<&'static str>)> {
    let ops = program.ops();
    // A layer begins with its norm and projection, which the first op that is only in layers follows or is.
    let begins = |i: usize| match ops[i] {
        Op::ShiftMix(_) => i == 0 || !ops[..i].iter().rev().take(1).any(|op| matches!(op, Op::ShiftMix(_))),
        _ => ops.get(i + 1).is_some_and(|next| matches!(next, Op::QkRopeWrite(_))),
    };
    let starts: Vec<usize> = (0..ops.len()).filter(|&i| begins(i)).collect();
    let last_end = ops.iter().position(|op| matches!(op, Op::Head(_))).unwrap_or(ops.len());
    let names = |range: std::ops::Range<usize>| ops[range].iter().map(Op::name).collect::<Vec<_>>();
    let first = starts.first().copied().unwrap_or(last_end);
    let mut groups = Vec::new();
    let mut add = |names: Vec<&'static str>| match groups.last_mut() {
        Some((count, same)) if *same == names => *count += 1,
        _ if names.is_empty() => {}
        _ => groups.push((1, names)),
    };
    add(names(0..first));
    for (i, &start) in starts.iter().enumerate() {
        add(names(start..starts.get(i + 1).copied().unwrap_or(last_end)));
    }
    add(names(last_end..ops.len()));
    groups
}

fn as_text(args: &Args, files: &Files, model: &Result<Model>, plan: Option<(usize, MemoryPlan)>) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {value}");
    };
    row("files", format!("{} ({})", files.paths.join(", "), files.format));
    if let Some(name) = &files.name {
        row("name", name.clone());
    }
    row("architecture", files.architecture.clone().unwrap_or_else(|| "not named".into()));
    row("tensors", format!("{}, {}", files.tensors, output::size(files.tensor_bytes)));
    for (dtype, tensors, elements) in &files.types {
        row("", format!("{:<5} {tensors} tensors, {elements} elements", type_name(*dtype)));
    }
    row("tokenizer", files.tokenizer.clone().unwrap_or_else(|| "none".into()));
    match (model, plan) {
        (Ok(model), Some((ctx, plan))) => {
            sizes(&model.info, &mut row);
            let _ =
                writeln!(text, "\nmemory for a context of {ctx} tokens, kv {}\n{plan}", args.kv_type.name());
            let _ = write!(text, "\noperations");
            for (count, ops) in op_groups(&model.program) {
                let times = if count == 1 { String::new() } else { format!("{count} ×") };
                let _ = write!(text, "\n{times:>6} {}", ops.join(", "));
            }
        }
        (Err(error), _) => {
            let _ = write!(text, "\nIt cannot be run: {error:#}");
        }
        (Ok(_), None) => {}
    }
    text
}

fn sizes(info: &ModelInfo, row: &mut impl FnMut(&str, String)) {
    row("family", info.family.to_string());
    row("parameters", format!("{} ({:.1} million)", info.parameters, info.parameters as f64 / 1e6));
    row("layers", format!("{} of width {}, hidden {}", info.layers, info.width, info.hidden));
    row("heads", format!("{} of {}, {} for keys and values", info.heads, info.head_dim, info.kv_heads));
    if info.experts > 0 {
        row("experts", format!("{} of {} for each token", info.experts_used, info.experts));
    }
    row("vocabulary", info.vocab.to_string());
    let context = if info.context == 0 { "no bound".to_string() } else { format!("{} tokens", info.context) };
    row("context", context);
}

fn as_json(args: &Args, files: &Files, model: &Result<Model>, plan: Option<(usize, MemoryPlan)>) -> Value {
    let types: Vec<_> = files
        .types
        .iter()
        .map(|(dtype, tensors, elements)| {
            json!({ "type": type_name(*dtype), "tensors": tensors, "elements": elements })
        })
        .collect();
    let model_json = model.as_ref().ok().map(|Model { info, program }| {
        let ops: Vec<_> = op_groups(program)
            .into_iter()
            .map(|(count, ops)| json!({ "times": count, "ops": ops }))
            .collect();
        json!({
            "family": info.family,
            "parameters": info.parameters,
            "layers": info.layers,
            "width": info.width,
            "heads": info.heads,
            "kv_heads": info.kv_heads,
            "head_dim": info.head_dim,
            "hidden": info.hidden,
            "experts": info.experts,
            "experts_used": info.experts_used,
            "vocab": info.vocab,
            "context": if info.context == 0 { Value::Null } else { info.context.into() },
            "ops": ops,
        })
    });
    let memory = plan.map(|(ctx, plan)| {
        json!({
            "ctx": ctx,
            "kv_type": args.kv_type.name(),
            "weights": plan.weights,
            "kv": plan.kv,
            "kv_blocks": plan.kv_blocks,
            "kv_tokens": plan.kv_tokens(),
            "kv_bytes_per_token": plan.kv_bytes_per_token,
            "recurrent": plan.recurrent,
            "snapshots": plan.snapshots,
            "scratch": plan.scratch,
            "total": plan.total(),
        })
    });
    json!({
        "format": files.format,
        "files": files.paths,
        "name": files.name,
        "architecture": files.architecture,
        "tensors": files.tensors,
        "tensor_bytes": files.tensor_bytes,
        "types": types,
        "tokenizer": files.tokenizer,
        "model": model_json,
        "memory": memory,
        "error": model.as_ref().err().map(|e| format!("{e:#}")),
    })
}
