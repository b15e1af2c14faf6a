//! `exotherm serve`: models behind the OpenAI API.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use exotherm_engine::{EngineConfig, EngineError, EngineHandle, MemoryPlan};
use exotherm_kernels::{Backend, KvType, Program};
use exotherm_server::{Config, Facts, ServedModel, Server};
use exotherm_weights::store::DEFAULT_MODEL;

use crate::Context;
use crate::args::{BackendKind, ComputeArgs, QuantizeArg, bytes, kv_types, positive, whole, whole_seconds};
use crate::machine;
use crate::model::{self, LoadTimes};
use crate::output::{self, UsageError, note};
use crate::telemetry;

/// How often it is looked whether the server is to stop.
const TICK: Duration = Duration::from_millis(20);

/// The longest time that can be asked for, in seconds.
const DAY: u64 = 86_400;

/// Serve models over HTTP, as OpenAI does
///
/// Chats at /v1/chat/completions, completions at /v1/completions, embeddings at /v1/embeddings, models at /v1/models, a
/// page for the browser at /, and /tokenize, /detokenize, /health, /ready, /metrics and /openapi.json. Ctrl-C or SIGTERM ends it once everything that
/// was begun is finished; a second one ends it at once. Everything but the address goes to stderr.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name, a path or hf:org/repo[/file] [default: smollm2]
    #[arg(value_name = "MODEL", conflicts_with = "models")]
    model: Option<String>,
    /// Serve MODEL under this name; may be given several times
    #[arg(long = "model", value_name = "NAME=MODEL", value_parser = named)]
    models: Vec<(String, String)>,
    /// Address to listen at; any other than this machine's own needs a key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen at; 0 takes one that is free
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Tokens of prompt and answer together [default: what the model was trained for, at most 4096]
    #[arg(long, value_name = "N", value_parser = positive)]
    ctx: Option<usize>,
    /// Requests that run at a time, of each model
    #[arg(long, value_name = "N", default_value_t = EngineConfig::SERVING_SEQS, value_parser = positive)]
    max_seqs: usize,
    /// Requests that may wait beside those that run; more are sent away
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = whole::<usize>)]
    queue: usize,
    /// Memory that a model and its requests may take in all (6G, 800M): less cache, and fewer requests at a time when they
    /// are long
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    memory: Option<usize>,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_types())]
    kv_type: KvType,
    #[command(flatten)]
    quantize: QuantizeArg,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    access: AccessArgs,
    /// Leave parameters that are not known or not supported out of account, and name them in the reply's x-exotherm-warning
    /// header; values out of range stay errors
    #[arg(long)]
    lenient: bool,
    /// Seconds after which an answer is cut off [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = whole_seconds(1..=DAY))]
    timeout: Option<u64>,
    /// Seconds in which requests may finish when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = whole_seconds(0..=DAY))]
    drain: u64,
    /// Send a span of each request to this collector of OpenTelemetry's (OTLP over HTTP: http://localhost:4318)
    /// [env: OTEL_EXPORTER_OTLP_ENDPOINT] [needs the cargo feature `otlp`]
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
}

/// Who may use the server.
#[derive(clap::Args)]
#[command(next_help_heading = "Access")]
struct AccessArgs {
    /// A key that opens the server; may be given several times
    #[arg(
        long = "api-key",
        value_name = "KEY",
        env = "EXOTHERM_API_KEYS",
        value_delimiter = ',',
        hide_env_values = true
    )]
    api_keys: Vec<String>,
    /// Listen without a key where others can reach it
    #[arg(long)]
    insecure: bool,
    /// Answer under this name, too, without a key: beside localhost, addresses and --host, or * for any; may be given
    /// several times
    #[arg(long = "allow-host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Let web pages of this origin use the server (https://example.org, or * for all); may be given several times
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  exotherm serve                                       the default model at http://127.0.0.1:8080
  exotherm serve model.gguf --port 9000 --ctx 8192
  exotherm serve --model small=smollm2 --model big=./big.gguf
  exotherm serve --host 0.0.0.0 --api-key \"$KEY\"       or EXOTHERM_API_KEYS=key1,key2
  curl localhost:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}'

RUST_LOG=exotherm=info prints a line about each request, exotherm=debug also its times.
Exit codes: 0 stopped, also while loading, 1 error, 2 wrong usage, 130 Ctrl-C or SIGTERM a second time.";

/// NAME=MODEL.
fn named(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, model)) if !name.is_empty() && !model.is_empty() => Ok((name.into(), model.into())),
        _ => Err("write NAME=MODEL".into()),
    }
}

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    let names = names(args)?;
    let address = address(args)?;
    let keys: Vec<String> = args.access.api_keys.iter().map(|key| key.trim().to_string()).collect();
    if keys.iter().any(String::is_empty) {
        return Err(UsageError("an API key is empty".into()).into());
    }
    if !address.ip().is_loopback() && keys.is_empty() && !args.access.insecure {
        let why = format!(
            "{} can be reached by others: give an --api-key (or EXOTHERM_API_KEYS), or --insecure to do without",
            address.ip()
        );
        return Err(UsageError(why).into());
    }
    let telemetry = telemetry::start(args.otlp.as_deref())?;
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
    let server = Server::start(listener, config(args, keys))?;
    // Whoever stops it while it loads breaks nothing off.
    cx.interrupt.set_harmless(true);
    let mut room = Room { free: machine::free_memory(), planned: 0, beside: Beside::new(names.len()) };
    let load = |(name, model): &(String, String)| load(args, cx, name, model, &mut room);
    let models = names.iter().map(load).collect::<Result<_>>()?;
    let watched = cx.interrupt.watch();
    cx.interrupt.set_harmless(false);
    server.publish(models);
    output::text(format_args!("listening at http://{}", server.address()))?;
    let ended = wait(server, args, cx);
    telemetry.finish();
    drop(watched);
    ended
}

fn config(args: &Args, api_keys: Vec<String>) -> Config {
    Config {
        api_keys,
        cors: args.access.cors.clone(),
        hosts: [args.access.hosts.clone(), vec![args.host.clone()]].concat(),
        lenient: args.lenient,
        request_timeout: args.timeout.map(Duration::from_secs),
        drain: Duration::from_secs(args.drain),
        max_bodies_bytes: for_requests(args.memory),
        ..Config::default()
    }
}

/// The models and the names they are served under.
fn names(args: &Args) -> Result<Vec<(String, String)>> {
    if args.models.is_empty() {
        let model = args.model.as_deref().unwrap_or(DEFAULT_MODEL);
        return Ok(vec![(public_name(model), model.to_string())]);
    }
    for (i, (name, _)) in args.models.iter().enumerate() {
        if args.models[..i].iter().any(|(other, _)| other == name) {
            return Err(UsageError(format!("two models are called {name}")).into());
        }
    }
    Ok(args.models.clone())
}

/// A name that tells no folder of this machine.
fn public_name(model: &str) -> String {
    if let Some(hub) = model.strip_prefix("hf:") {
        return hub.to_string();
    }
    let path = std::path::Path::new(model);
    let file = path.file_name().map_or(model.into(), |name| name.to_string_lossy());
    let stem = [".gguf", ".safetensors"].iter().find_map(|ending| file.strip_suffix(ending));
    stem.unwrap_or(&file).to_string()
}

fn address(args: &Args) -> Result<SocketAddr> {
    let host = args.host.trim_start_matches('[').trim_end_matches(']');
    let mut found =
        (host, args.port).to_socket_addrs().with_context(|| format!("there is no address {host}"))?;
    found.next().with_context(|| format!("there is no address {host}"))
}

/// What the plans of the models may take together. Memory is given out when it is first touched, so a plan that is too
/// large would be found out only under load.
struct Room {
    /// Before anything was loaded; `None` where the system does not tell.
    free: Option<u64>,
    planned: u64,
    beside: Beside,
}

impl Room {
    /// Refuses a plan that does not fit, unless its size was asked for by number. What lies on a device of its own takes none of
    /// this machine's memory.
    fn take(&mut self, plan: &MemoryPlan, is_here: bool, memory: Option<usize>) -> Result<()> {
        let of_model = if is_here { plan.total() } else { 0 };
        let total = of_model.saturating_add(self.beside.total(memory));
        self.planned = self.planned.saturating_add(total as u64);
        let Some(free) = self.free.filter(|&free| self.planned > free) else { return Ok(()) };
        let (planned, free) = (output::size(self.planned), output::size(free));
        if memory.is_some() {
            note(format_args!("warning: {planned} are planned, this machine has {free} left"));
            return Ok(());
        }
        bail!(
            "{planned} are planned, this machine has {free} left; --memory, a smaller --ctx or --max-seqs take less"
        )
    }
}

fn load(args: &Args, cx: &Context, name: &str, model_name: &str, room: &mut Room) -> Result<ServedModel> {
    let begin = Instant::now();
    let mut checkpoint = model::open(cx, model_name)?;
    let model = model::record(&mut checkpoint, args.quantize.quantize)?;
    let ctx = model::context(&model.program, &model.info, args.ctx);
    let (backend, level) = model::backend_and_level(&args.compute)?;
    let config = engine_config(args, ctx, &model.program, &*backend, &room.beside)?;
    note(format_args!("{name}: {} sequences of up to {ctx} tokens", args.max_seqs));
    let plan = MemoryPlan::new(&model.program, &*backend, &config);
    note(plan);
    room.beside.tell(&plan, args.memory);
    room.take(&plan, backend.is_in_host_memory(), args.memory)?;
    let path = checkpoint.path().to_path_buf();
    let mut ready = model::make_ready(checkpoint, model.program, &*backend, config, LoadTimes::default())?;
    if args.compute.backend == BackendKind::Gpu {
        let rebuild = model::rebuild(path, args.quantize.quantize, args.compute.clone());
        ready.engine.set_rebuild(rebuild);
    }
    let facts = Facts {
        kv_type: args.kv_type.name().into(),
        backend: backend.name().into(),
        level: level.into(),
        threads: args.compute.threads(),
    };
    let handle = EngineHandle::start(ready.engine, args.max_seqs.saturating_add(args.queue));
    let handle = handle.context("cannot start the engine's thread")?;
    if !matches!(ready.tokenizer.chat_template(), Ok(Some(_))) {
        note(format_args!(
            "note: {name} has no chat template that can be used; /v1/chat/completions is not for it"
        ));
    }
    note(format_args!("{name}: ready after {:.2} s", begin.elapsed().as_secs_f64()));
    Ok(ServedModel::new(name.into(), handle, ready.tokenizer, ready.stop_tokens, facts))
}

/// What the bodies of requests and the replies of a server may take: a sixteenth of its memory, so much that one large
/// body always fits, and no more than there is use for.
fn for_requests(memory: Option<usize>) -> usize {
    const MOST: usize = 64 << 20;
    memory.map_or(MOST, |bytes| (bytes / 16).clamp(8 << 20, MOST))
}

/// What is taken beside a model's plan.
struct Beside {
    /// Models that share the room for requests.
    models: usize,
}

impl Beside {
    /// What the program itself takes, about: its code, a tokenizer, connections.
    const PROGRAM: usize = 16 << 20;

    fn new(models: usize) -> Beside {
        Beside { models: models.max(1) }
    }

    fn requests(&self, memory: Option<usize>) -> usize {
        for_requests(memory).div_ceil(self.models)
    }

    fn total(&self, memory: Option<usize>) -> usize {
        Beside::PROGRAM + self.requests(memory)
    }

    /// The least memory of which so much is left for a model. What requests may take grows with it, but far more slowly.
    fn around(&self, model: usize) -> usize {
        let mut memory = model;
        loop {
            let need = model.saturating_add(self.total(Some(memory)));
            if need <= memory {
                return memory;
            }
            memory = need;
        }
    }

    fn tell(&self, plan: &MemoryPlan, memory: Option<usize>) {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        note(format_args!("requests   {:10.1} MiB  bodies and replies, about", mib(self.requests(memory))));
        note(format_args!("program    {:10.1} MiB  about", mib(Beside::PROGRAM)));
        note(format_args!("in all     {:10.1} MiB", mib(plan.total().saturating_add(self.total(memory)))));
    }
}

fn engine_config(
    args: &Args,
    ctx: usize,
    program: &Program,
    backend: &dyn Backend,
    beside: &Beside,
) -> Result<EngineConfig> {
    let config = EngineConfig {
        queue: args.queue,
        kv_type: args.kv_type,
        ..EngineConfig::serving(ctx, args.max_seqs)
    };
    let Some(memory) = args.memory else { return Ok(config) };
    let left = memory.saturating_sub(beside.total(args.memory));
    Ok(config.within(left, program, backend).map_err(|error| match error {
        // What was typed, and what is to be typed instead.
        EngineError::Budget { ctx, max_seqs, least, .. } => {
            let beside = beside.around(least.total()).saturating_sub(least.total());
            EngineError::Budget { budget: memory, ctx, max_seqs, least, beside }
        }
        error => error,
    })?)
}

/// Waits for Ctrl-C or SIGTERM, then for what is under way. While it waits, a second one ends the process.
fn wait(server: Server, args: &Args, cx: &Context) -> Result<()> {
    while !cx.interrupt.pressed() && !server.is_finished() {
        sleep(TICK);
    }
    // A server that has ended of itself is told nothing any more: that it did is the error.
    if !server.is_finished() {
        note(format_args!("stopping: requests may finish within {} s", args.drain));
        server.stop();
    }
    Ok(server.wait()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_names_hide_folders() {
        let cases = [
            ("smollm2", "smollm2"),
            ("/home/me/models/a.b.gguf", "a.b"),
            ("./folder", "folder"),
            ("x/model.safetensors", "model"),
            ("hf:org/repo/file.gguf", "org/repo/file.gguf"),
        ];
        cases.iter().for_each(|(model, name)| assert_eq!(public_name(model), *name));
    }

    #[test]
    fn the_least_memory_leaves_what_a_model_needs() {
        for models in [1, 3] {
            let beside = Beside::new(models);
            let left = |memory: usize| memory.saturating_sub(beside.total(Some(memory)));
            for model in [0, 1, 30 << 20, (150 << 20) + 7, 3 << 30, 50 << 30] {
                let least = beside.around(model);
                assert!(left(least) >= model && left(least - 1) < model.max(1), "{models} {model}");
                // Who rounds it up has no less.
                assert!(left(least.next_multiple_of(1 << 20)) >= model, "{models} {model}");
            }
        }
        assert!(Beside::new(1).around(usize::MAX) == usize::MAX);
    }

    #[test]
    fn models_have_names() {
        assert_eq!(named("a=b=c"), Ok(("a".into(), "b=c".into())));
        ["", "a", "=b", "a="].iter().for_each(|wrong| assert!(named(wrong).is_err(), "{wrong:?}"));
    }
}
