//! `exotherm run`: one answer, or a chat.

use std::io::{self, IsTerminal, Read};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::builder::NonEmptyStringValueParser;
use exotherm_engine::{Engine, EngineConfig, Request, Sampling};
use exotherm_kernels::KvType;
use exotherm_observe::RunSummary;
use exotherm_tokenizer::{Message, Specials, Tokenizer};
use exotherm_weights::store::{DEFAULT_MODEL, Store};
use serde_json::json;

use crate::Context;
use crate::args::{ComputeArgs, QuantizeArg, SamplingArgs, kv_types, positive};
use crate::commands::chat;
use crate::generate::{Answer, Reason, Watcher, answer};
use crate::model::{self, LoadTimes, Ready};
use crate::output::{self, Interrupted, Out, UsageError, note};

/// Answer a prompt, or chat
///
/// The answer goes to stdout as it comes, everything else to stderr. Without a PROMPT, what is piped in is the prompt
/// (less one newline at its end); on a terminal, a chat begins.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name, a path or hf:org/repo[/file]; an only argument that is none of these is the PROMPT
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// What the model is to answer
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
    /// End the answer after so many tokens [default: when the model ends it or the context is full]
    #[arg(long, short = 'n', value_name = "N", value_parser = positive)]
    pub max_tokens: Option<usize>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// What the model is told to be, before the conversation
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Give the prompt to the model as it is, without the chat template; control tokens written out in it count
    #[arg(long)]
    pub raw: bool,
    /// Tokens of prompt and answer together [default: what the model was trained for, at most 4096]
    #[arg(long, value_name = "N", value_parser = positive)]
    ctx: Option<usize>,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_types())]
    kv_type: KvType,
    #[command(flatten)]
    quantize: QuantizeArg,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Print one JSON object at the end instead of text
    #[arg(long, help_heading = "Options")]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm run \"Why is the sky blue?\"
  exotherm run smollm2                                       chat; /help lists its commands
  exotherm run model.gguf \"Say it shorter\" < letter.txt      stdin is not read when there is a PROMPT
  echo \"Name three rivers\" | exotherm run smollm2 --temperature 0
  exotherm run hf:org/repo/file.gguf \"Hello\" --max-tokens 100 --json
  exotherm run gemma3-270m --raw \"Once upon a time\" --stop \".\"

Exit codes: 0 done, 1 error, 2 wrong usage, 130 Ctrl-C.";

impl Args {
    pub fn sampling(&self) -> Sampling {
        self.sampling.sampling()
    }
}

/// A model that is ready, and what belongs to a conversation with it.
pub struct Session {
    pub model: String,
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    pub stop_tokens: Vec<u32>,
    pub ctx: usize,
    pub times: LoadTimes,
    pub load: Duration,
    /// The instruction level, of a backend that has a choice.
    pub isa: Option<&'static str>,
    /// Whether prompts go through the chat template.
    pub templated: bool,
}

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    args.sampling().check().map_err(|e| UsageError(e.to_string()))?;
    let (model, prompt) = what_to_run(args)?;
    if let Some(prompt) = prompt {
        let mut session = begin(args, cx, &model)?;
        return once(args, cx, &mut session, &prompt);
    }
    if args.json {
        return Err(UsageError("--json needs a PROMPT, or one piped in".into()).into());
    }
    let mut session = begin(args, cx, &model)?;
    chat::run(args, cx, &mut session)
}

/// MODEL and, but for a chat, the PROMPT.
fn what_to_run(args: &Args) -> Result<(String, Option<String>)> {
    let (model, prompt) = match (&args.model, &args.prompt) {
        (Some(model), Some(prompt)) => (model.as_str(), Some(prompt.clone())),
        (Some(only), None) if Store::from_env().is_model(only) => (only.as_str(), None),
        (Some(only), None) => {
            if [".gguf", ".safetensors"].iter().any(|ending| only.ends_with(ending)) {
                note(format_args!(
                    "note: there is no file {only}, so this is taken as the prompt for {DEFAULT_MODEL}"
                ));
            }
            (DEFAULT_MODEL, Some(only.clone()))
        }
        (None, _) => (DEFAULT_MODEL, None),
    };
    let prompt = match prompt {
        None if !io::stdin().is_terminal() => Some(piped_prompt()?),
        prompt => prompt,
    };
    if prompt.as_ref().is_some_and(String::is_empty) {
        bail!("the prompt is empty; give a PROMPT, pipe one in, or start a chat on a terminal");
    }
    Ok((model.to_string(), prompt))
}

/// All of stdin, less the newline that ends a text file.
fn piped_prompt() -> Result<String> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).context("cannot read the prompt from stdin")?;
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("the prompt on stdin is no UTF-8: the byte at offset {at} belongs to no character")
    })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

fn begin(args: &Args, cx: &Context, model_name: &str) -> Result<Session> {
    let begin = Instant::now();
    let mut checkpoint = model::open(cx, model_name)?;
    let open = begin.elapsed();
    let model = model::record(&mut checkpoint, args.quantize.quantize)?;
    let times = LoadTimes { open, record: begin.elapsed() - open, ..LoadTimes::default() };
    let ctx = model::context(&model.program, &model.info, args.ctx);
    let config = EngineConfig { kv_type: args.kv_type, ..EngineConfig::new(ctx) };
    let (backend, level) = model::backend_and_level(&args.compute)?;
    let ready = model::make_ready(checkpoint, model.program, &*backend, config, times)?;
    let Ready { engine, tokenizer, stop_tokens, times } = ready;
    let templated = !args.raw
        && tokenizer
            .chat_template()
            .context("--raw gives the prompt to the model without a template")?
            .is_some();
    if !templated && !args.raw {
        if args.system.is_some() {
            bail!(
                "{model_name} has no chat template, so --system cannot be given to it; write it into the prompt"
            );
        }
        note(format_args!(
            "note: {model_name} has no chat template; it continues the prompt as it is (--raw)"
        ));
    }
    Ok(Session {
        model: model_name.to_string(),
        engine,
        tokenizer,
        stop_tokens,
        ctx,
        times,
        load: begin.elapsed(),
        isa: args.compute.isa_of(level),
        templated,
    })
}

impl Session {
    /// The tokens of a conversation, up to where the model is to answer.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let template = self.tokenizer.chat_template()?.context("the model has no chat template")?;
        let piece = |id: Option<u32>| {
            id.and_then(|id| self.tokenizer.piece(id)).map(|p| String::from_utf8_lossy(p).into_owned())
        };
        let extra =
            json!({ "bos_token": piece(self.tokenizer.bos()), "eos_token": piece(self.tokenizer.eos()) });
        let encoded = self.tokenizer.encode_chat(template, messages, &extra);
        encoded.context("the conversation cannot be put into the model's template (--raw goes without one)")
    }

    /// The tokens of a text that the model is to continue.
    pub fn encode_raw(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, Specials { add: true, parse: true })?)
    }

    pub fn request(&self, args: &Args, prompt: Vec<u32>, sampling: Sampling) -> Request {
        // Where nothing is left of the context the engine says so, with the numbers.
        let room = self.ctx.saturating_sub(prompt.len()).max(1);
        let max_tokens = args.max_tokens.unwrap_or(room);
        // Rows beyond have no text.
        let sampling = Sampling { vocab: self.tokenizer.vocab_size(), ..sampling };
        Request { sampling, stop_tokens: self.stop_tokens.clone(), ..Request::new(prompt, max_tokens) }
    }

    /// What the answer took; `since` is when its making began.
    pub fn summary(&self, answer: &Answer, since: Instant) -> RunSummary {
        RunSummary {
            load: self.load,
            prompt_tokens: answer.stats.prompt_tokens,
            cached_tokens: answer.stats.cached_tokens,
            prompt_time: answer.stats.prompt_time,
            generated: answer.stats.generated,
            decode_time: answer.stats.decode_time,
            first_token: answer.first_token.map_or(Duration::ZERO, |first| first - since),
        }
    }

    pub fn note_if_full(&self, args: &Args, answer: &Answer) {
        if answer.reason == Reason::Length && args.max_tokens.is_none() {
            note(format_args!("note: the context of {} tokens is full; --ctx makes it longer", self.ctx));
        }
    }
}

fn once(args: &Args, cx: &Context, session: &mut Session, prompt: &str) -> Result<()> {
    let prompt = if session.templated {
        let system = args.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.chain([Message::new("user", prompt)]).collect();
        session.encode_chat(&messages)?
    } else {
        session.encode_raw(prompt)?
    };
    let sampling = args.sampling();
    let seed = sampling.seed;
    let request = session.request(args, prompt, sampling);
    let mut out = Out::new();
    let mut show = |text: &str| {
        if args.json {
            return Ok(());
        }
        out.text(text)?;
        out.flush()
    };
    let mut watcher = Watcher {
        tokenizer: &session.tokenizer,
        continues: !session.templated,
        stops: &args.stop,
        interrupt: &cx.interrupt,
        show: &mut show,
    };
    let answer = answer(&mut session.engine, request, &mut watcher)?;
    let summary = session.summary(&answer, cx.started);
    if args.json {
        print_json(args, session, &answer, &summary, seed)?;
    } else if !answer.text.ends_with('\n') {
        out.line("")?;
        out.flush()?;
    }
    note(summary);
    session.note_if_full(args, &answer);
    match answer.reason {
        Reason::Interrupted => Err(Interrupted.into()),
        _ => Ok(()),
    }
}

fn print_json(
    args: &Args,
    session: &Session,
    answer: &Answer,
    summary: &RunSummary,
    seed: u64,
) -> Result<()> {
    let seconds = |d: Duration| d.as_secs_f64();
    let times = &session.times;
    output::json(&json!({
        "model": session.model,
        "backend": args.compute.backend.name(),
        "isa": session.isa,
        "threads": args.compute.threads(),
        "text": answer.text,
        "tokens": answer.tokens,
        "reason": answer.reason.name(),
        "prompt_tokens": answer.stats.prompt_tokens,
        "generated_tokens": answer.stats.generated,
        "seed": seed,
        "timings": {
            "first_token_s": seconds(summary.first_token),
            "load_s": seconds(summary.load),
            "open_s": seconds(times.open),
            "record_s": seconds(times.record),
            "tokenizer_s": seconds(times.tokenizer),
            "pack_s": seconds(times.pack),
            "prompt_s": seconds(summary.prompt_time),
            "prompt_tok_s": summary.prompt_rate(),
            "decode_s": seconds(summary.decode_time),
            "decode_tok_s": summary.decode_rate(),
        },
        "resident_bytes": exotherm_observe::resident_bytes().map(|r| r.peak),
    }))
}
