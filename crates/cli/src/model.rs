//! From what a user calls a model to a program, its tokenizer and a backend.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use exotherm_engine::{Engine, EngineConfig, EngineError, Event, Rebuild};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::gpu::{GpuBackend, GpuInfo, GpuKind, GpuOptions, LoadProgress};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{BLOCK, Backend, BackendError, Executor, KvType, Limits, Program};
use exotherm_models::{LoadOptions, Model, ModelInfo, load};
use exotherm_tensor::DType;
use exotherm_tokenizer::{GgufVocab, Tokenizer};
use exotherm_weights::store::{Progress, Store};
use exotherm_weights::{Checkpoint, Format, Metadata, is_weight_matrix};

use crate::Context;
use crate::args::{BackendKind, ComputeArgs, DEFAULT_CTX, IsaArg};
use crate::output::{self, Interrupted, note};
use crate::trace::traced;

/// Finds MODEL, fetches it if that is needed, and opens it.
pub fn open(cx: &Context, model: &str) -> Result<Checkpoint> {
    let store = Store::from_env().with_cancel(Arc::clone(cx.interrupt.flag()));
    let watched = cx.interrupt.watch();
    let path = store.resolve(model, &output::progress())?;
    drop(watched);
    open_path(&path)
}

/// The path as it is if something is there, else the file of the known model of that name.
pub fn local_file(cx: &Context, path: &Path) -> Result<PathBuf> {
    match path.to_str() {
        Some(name) if !path.exists() => {
            let store = Store::from_env().with_cancel(Arc::clone(cx.interrupt.flag()));
            let _watched = cx.interrupt.watch();
            Ok(store.resolve(name, &output::progress())?)
        }
        _ => Ok(path.to_path_buf()),
    }
}

pub fn open_path(path: &Path) -> Result<Checkpoint> {
    Ok(Checkpoint::open(path)?)
}

/// The tokenizer of a checkpoint, if it has one.
pub fn tokenizer(checkpoint: &Checkpoint) -> Result<Option<Tokenizer>> {
    match checkpoint.format() {
        Format::Gguf => {
            let Some(vocab) = gguf_vocab(checkpoint.metadata()) else { return Ok(None) };
            Ok(Some(Tokenizer::from_gguf(vocab)?))
        }
        Format::Safetensors => Ok(Tokenizer::from_dir(checkpoint.dir())?),
    }
}

/// The tokenizer, or an error that says how to do without.
pub fn need_tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer> {
    tokenizer(checkpoint)?.with_context(|| no_tokenizer(checkpoint))
}

fn no_tokenizer(checkpoint: &Checkpoint) -> String {
    let shown = checkpoint.path().display();
    match checkpoint.format() {
        Format::Gguf => {
            format!("{shown} carries no tokenizer; `exotherm logits` works on token ids without one")
        }
        Format::Safetensors => format!(
            "there is no tokenizer.json or rwkv_vocab_*.txt beside {shown}; put it there, or use `exotherm \
             logits`, which works on token ids"
        ),
    }
}

fn gguf_vocab(metadata: &Metadata) -> Option<GgufVocab<'_>> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let text = |name: &str| metadata.str(&key(name)).map(str::to_string);
    let strings = |name: &str| metadata.strings(&key(name)).map(Iterator::collect).unwrap_or_default();
    // Some files write "none" as -1 in a signed field.
    let id = |name: &str| metadata.i64(&key(name)).and_then(|id| u32::try_from(id).ok());
    let flag = |name: &str| metadata.bool(&key(name));
    Some(GgufVocab {
        model: text("model")?,
        pre: text("pre"),
        name: metadata.str("general.name").map(str::to_string),
        tokens: strings("tokens"),
        scores: metadata.f32s(&key("scores")).map(Iterator::collect).unwrap_or_default(),
        types: metadata.i32s(&key("token_type")).map(Iterator::collect).unwrap_or_default(),
        merges: strings("merges"),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        eot: id("eot_token_id"),
        eom: id("eom_token_id"),
        unk: id("unknown_token_id"),
        sep: id("seperator_token_id"),
        pad: id("padding_token_id"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        remove_extra_whitespaces: flag("remove_extra_whitespaces"),
        chat_template: metadata.str("tokenizer.chat_template").map(str::to_string),
    })
}

/// The tokens that end an answer: the tokenizer's and those of generation_config.json.
pub fn stop_tokens(tokenizer: &Tokenizer, checkpoint: &Checkpoint) -> Vec<u32> {
    let mut ids = tokenizer.end_of_generation().to_vec();
    let eos = checkpoint.generation_config().and_then(|config| config.get("eos_token_id"));
    let listed = eos.map(|v| v.as_array().map_or_else(|| std::slice::from_ref(v), Vec::as_slice));
    let listed = listed.unwrap_or_default().iter().filter_map(|v| u32::try_from(v.as_u64()?).ok());
    ids.extend(listed);
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Records the model's program, its float weights in another type if that was asked for.
pub fn record(checkpoint: &mut Checkpoint, quantize: Option<DType>) -> Result<Model> {
    let Some(to) = quantize else { return Ok(load(checkpoint, &LoadOptions::default())?) };
    if !has_float_matrix(checkpoint) {
        note(format_args!(
            "note: --quantize {to} changes nothing: no weight matrix of this model is of a float type"
        ));
    }
    let bar = Bar::begin(&format!("quantizing to {to}"), checkpoint.tensor_bytes());
    let told = Mutex::new(0);
    let shown = Arc::clone(&bar);
    let progress = move |done: u64, _total: u64| {
        let mut told = told.lock().unwrap_or_else(|e| e.into_inner());
        shown.0.advance(done.saturating_sub(*told));
        *told = done;
    };
    let options = LoadOptions { quantize, progress: Some(Arc::new(progress)) };
    let model = load(checkpoint, &options);
    bar.0.finish();
    Ok(model?)
}

/// A running bar that a closure of any life can hold.
struct Bar(Box<dyn Progress + Send + Sync>);

impl Bar {
    fn begin(label: &str, total: u64) -> Arc<Bar> {
        let bar = output::quiet_progress();
        bar.begin(label, Some(total));
        Arc::new(Bar(bar))
    }
}

fn has_float_matrix(checkpoint: &Checkpoint) -> bool {
    let is_float = |name: &str| {
        checkpoint.info(name).is_some_and(|(dtype, shape)| {
            !dtype.is_quantized()
                && is_weight_matrix(&format!("{}.weight", name.trim_end_matches(".weight")), shape)
        })
    };
    checkpoint.names().any(is_float)
}

/// What computes, telling what its attention took if `RUST_LOG` asks for that.
pub fn backend(args: &ComputeArgs) -> Result<Box<dyn Backend>> {
    backend_and_level(args).map(|(backend, _)| backend)
}

/// The same, and with which instructions it computes.
pub fn backend_and_level(args: &ComputeArgs) -> Result<(Box<dyn Backend>, &'static str)> {
    let (backend, level): (Box<dyn Backend>, _) = match args.backend {
        BackendKind::Cpu => {
            let backend = cpu_backend(args.threads(), &args.isa)?;
            let level = backend.level();
            (Box::new(backend), level)
        }
        BackendKind::Gpu => {
            refuse_isa(args)?;
            args.note_if_unused();
            (Box::new(gpu_backend()?), "wgsl")
        }
        BackendKind::Reference => {
            refuse_isa(args)?;
            args.note_if_unused();
            (Box::new(ReferenceBackend), "scalar")
        }
    };
    Ok((traced(backend), level))
}

fn refuse_isa(args: &ComputeArgs) -> Result<()> {
    if args.isa.isa.is_none() {
        return Ok(());
    }
    let name = args.backend.name();
    let why = format!("--isa chooses instructions of the cpu backend; the {name} backend has no choice");
    Err(output::UsageError(why).into())
}

/// The first GPU, real ones before software; says which.
pub fn gpu_backend() -> Result<GpuBackend> {
    let all = GpuInfo::all();
    let gpu = all.first().context(
        "there is no GPU that can be reached: Vulkan's loader (libvulkan.so.1) and a driver for the GPU are needed; \
         `exotherm devices` lists what there is",
    )?;
    let software =
        if gpu.kind() == GpuKind::Software { ", which is this processor in place of one" } else { "" };
    note(format_args!("note: the GPU is {} ({}){software}", gpu.name(), gpu.driver()));
    let backend = GpuBackend::open(gpu, &GpuOptions::default())?.with_progress(loading_bar());
    Ok(match Store::from_env().root() {
        Ok(root) => backend.with_kernel_cache(&root.join("kernels")),
        // Without a place for it every start compiles them.
        Err(_) => backend,
    })
}

/// A bar for weights that are brought to the GPU.
fn loading_bar() -> Arc<LoadProgress> {
    let bar: Mutex<Option<(Arc<Bar>, usize)>> = Mutex::new(None);
    Arc::new(move |done, total| {
        let mut bar = bar.lock().unwrap_or_else(|e| e.into_inner());
        if done == 0 && total > 0 {
            *bar = Some((Bar::begin("bringing weights to the GPU", total as u64), 0));
        }
        let Some((shown, told)) = &mut *bar else { return };
        shown.0.advance(done.saturating_sub(*told) as u64);
        *told = done;
        if done >= total {
            shown.0.finish();
            *bar = None;
        }
    })
}

/// The same, but for raw numbers: activations that meet weights which are floats stay as they are unless a level that
/// rounds them is asked for.
pub fn backend_for_numbers(args: &ComputeArgs) -> Result<Box<dyn Backend>> {
    match (args.backend, &args.isa.isa) {
        (BackendKind::Cpu, None) => Ok(traced(Box::new(CpuBackend::with_exact_floats(args.threads())))),
        _ => backend(args),
    }
}

/// The cpu backend at the level that was asked for, or the best there is.
pub fn cpu_backend(threads: usize, isa: &IsaArg) -> Result<CpuBackend> {
    let Some(level) = &isa.isa else { return Ok(CpuBackend::new(threads)) };
    CpuBackend::with_level(threads, level).with_context(|| {
        let levels: Vec<_> = CpuBackend::levels().collect();
        format!("this machine has no {level}; --isa can be {}", levels.join(", "))
    })
}

/// The context that was asked for, or one that fits the model.
pub fn context(program: &Program, info: &ModelInfo, asked: Option<usize>) -> usize {
    let trained = if info.context == 0 { usize::MAX } else { info.context };
    let Some(asked) = asked else {
        return DEFAULT_CTX.min(trained).min(program.max_positions().unwrap_or(usize::MAX));
    };
    if asked > trained && program.max_positions().is_none() {
        note(format_args!("note: the model was trained for {trained} tokens, --ctx {asked} is more"));
    }
    asked
}

/// Says so where a context is longer than what the model was trained for; `what` goes before how long it is.
pub fn note_if_untrained(program: &Program, info: &ModelInfo, ctx: usize, what: &str) {
    let trained = info.context;
    if trained > 0 && ctx > trained && program.max_positions().is_none() {
        note(format_args!("note: the model was trained for {trained} tokens of context, {what} {ctx}"));
    }
}

/// Times from the file to an engine that can run.
#[derive(Clone, Copy, Default)]
pub struct LoadTimes {
    pub open: Duration,
    pub record: Duration,
    /// The tokenizer is made while the weights are laid out; both times count from the same moment.
    pub tokenizer: Duration,
    pub pack: Duration,
}

/// An engine and its tokenizer, made side by side.
pub struct Ready {
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    pub stop_tokens: Vec<u32>,
    pub times: LoadTimes,
}

/// How a model whose GPU has failed is brought to it once more.
pub fn rebuild(path: PathBuf, quantize: Option<DType>, compute: ComputeArgs) -> Rebuild {
    let again = move |limits: &Limits| -> Result<Box<dyn Executor>> {
        let mut checkpoint = open_path(&path)?;
        let model = record(&mut checkpoint, quantize)?;
        let executor = backend(&compute)?.compile(&model.program, limits)?;
        checkpoint.give_back();
        Ok(executor)
    };
    Box::new(move |limits| {
        note("the GPU has failed; the model is brought to it once more");
        again(limits).map_err(|error| {
            note(format_args!("error: {error:#}"));
            format!("{error:#}")
        })
    })
}

/// Lays the weights out on this thread while another builds the tokenizer; lets go of the file's metadata after both.
pub fn make_ready(
    checkpoint: Checkpoint,
    program: Program,
    backend: &dyn Backend,
    config: EngineConfig,
    mut times: LoadTimes,
) -> Result<Ready> {
    let begin = Instant::now();
    let (tokenizer, engine) = thread::scope(|scope| {
        let timed = || {
            let made = need_tokenizer(&checkpoint);
            (made, begin.elapsed())
        };
        let tokenizer = scope.spawn(timed);
        let engine = Engine::new(&program, backend, config);
        // Weights that were quantized at load are the program's own: they go with it.
        drop(program);
        times.pack = begin.elapsed();
        let tokenizer = tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (tokenizer, engine)
    });
    times.tokenizer = tokenizer.1;
    let tokenizer = tokenizer.0?;
    let stop_tokens = stop_tokens(&tokenizer, &checkpoint);
    checkpoint.give_back();
    Ok(Ready { engine: engine?, tokenizer, stop_tokens, times })
}

/// As many rows of logits as are kept in memory at a time: 64 MiB of them, one at least.
pub fn logit_rows(program: &Program) -> usize {
    const BYTES: usize = 64 << 20;
    let width = program.buffer(program.logits()).width;
    (BYTES / (4 * width.max(1))).max(1)
}

/// So many tokens or, where they end within a block, those to its end: what the engine remembers to the last token.
pub fn whole_blocks(tokens: usize) -> usize {
    tokens.checked_next_multiple_of(BLOCK).unwrap_or(tokens)
}

/// For measuring: an engine can remember each sequence's context while another phase runs, and nothing on the way to it.
pub fn measured_config(ctx: usize, batch: usize, kv_type: KvType) -> EngineConfig {
    let snapshots = batch.saturating_mul(2);
    EngineConfig { kv_type, max_seqs: batch, snapshots, snapshot_stride: 0, ..EngineConfig::new(ctx) }
}

/// An engine for measuring. Where there is no room for it or for the tokens it is to read and write, the error names
/// `options` as the way out.
pub fn measuring_engine(
    program: &Program,
    backend: &dyn Backend,
    config: EngineConfig,
    options: &str,
) -> Result<Engine> {
    let (batch, ctx) = (config.max_seqs, config.ctx);
    let no_room = || anyhow!("no room for {batch} sequences of {ctx} tokens; smaller {options} need less");
    let engine = Engine::new(program, backend, config).map_err(|error| match error {
        EngineError::Memory { .. } | EngineError::Backend(BackendError::Memory { .. }) => no_room(),
        other => other.into(),
    })?;
    if has_room_for(batch.saturating_mul(ctx)) { Ok(engine) } else { Err(no_room()) }
}

/// Whether there is memory for so many tokens themselves, which is in no plan: text has few, but of those that are made up
/// for measuring any number can be asked for.
pub fn has_room_for(tokens: usize) -> bool {
    // The id, here and in the request; names and digests of blocks, which grow by doubling; and the rows of the steps of some
    // runs, which a profile keeps.
    const BYTES_OF_EACH: usize = 64;
    let mut room: Vec<u8> = Vec::new();
    let is_there = room.try_reserve_exact(tokens.saturating_mul(BYTES_OF_EACH)).is_ok();
    // Memory that nobody looks at need not be asked for.
    std::hint::black_box(&room);
    is_there
}

/// Steps until so many requests have ended, and shows each step to `seen`. What the ops took is added up, if clocks run.
pub fn finish(
    cx: &Context,
    engine: &mut Engine,
    mut requests: usize,
    op_nanos: &mut Vec<u64>,
    mut seen: impl FnMut(&Engine),
) -> Result<()> {
    let _watched = cx.interrupt.watch();
    while requests > 0 {
        if cx.interrupt.pressed() {
            return Err(Interrupted.into());
        }
        let events = engine.step()?;
        if let Some(fault) = events.iter().find_map(Event::fault) {
            bail!("{fault}");
        }
        requests -= events.iter().filter(|event| matches!(event, Event::Finished { .. })).count();
        let times = engine.executor().op_times();
        op_nanos.resize(times.len(), 0);
        op_nanos.iter_mut().zip(times).for_each(|(sum, time)| *sum += time.total);
        seen(engine);
    }
    Ok(())
}

/// Ids all over a vocabulary, always the same: for measuring and checking where no text is needed.
pub fn spread_ids(vocab: usize, n: usize) -> Vec<u32> {
    // Steps of the golden ratio come near no earlier point for as long as possible.
    const STEP: u64 = 0x9e37_79b9;
    let place = |i: u64| ((i.wrapping_mul(STEP) & 0xffff_ffff) * vocab as u64) >> 32;
    (1..=n as u64).map(|i| place(i) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_spread_over_the_vocabulary() {
        let ids = spread_ids(1000, 500);
        assert!(ids.iter().all(|&id| id < 1000));
        let mut hit = [0; 10];
        ids.iter().for_each(|id| hit[*id as usize / 100] += 1);
        assert!(hit.iter().all(|n| (45..=55).contains(n)), "{hit:?}");
        assert_eq!(spread_ids(1, 3), [0, 0, 0]);
    }

    #[test]
    fn an_answer_ends_somewhere_even_where_the_state_does_not_grow() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden/rwkv7/model.gguf");
        let mut checkpoint = Checkpoint::open(&path).expect("a golden model");
        let Model { mut info, program } = record(&mut checkpoint, None).expect("a model");
        for (trained, expected) in [(0, 4096), (1 << 20, 4096), (2048, 2048)] {
            info.context = trained;
            assert_eq!(context(&program, &info, None), expected);
        }
        assert_eq!(context(&program, &info, Some(1 << 20)), 1 << 20, "what is asked for can be had");
    }
}
