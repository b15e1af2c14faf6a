//! The `exotherm` binary: the only place where text, tokens and the engine meet.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod generate;
mod interrupt;
mod limits;
mod machine;
mod model;
mod output;
mod telemetry;
mod trace;

use std::process::ExitCode;
use std::time::Instant;

use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};

use interrupt::Interrupt;

/// Runs language models, transformers and RWKV, from GGUF and safetensors files.
#[derive(Parser)]
#[command(name = "exotherm", version, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  exotherm run \"Why is the sky blue?\"          the default model, fetched once
  exotherm run model.gguf                      chat with a model
  exotherm serve model.gguf                    answer over HTTP, as OpenAI does
  exotherm COMMAND --help                      options and examples of a command

MODEL is a known name (`exotherm models`), a path to a .gguf or .safetensors file,
a folder with config.json and safetensors, or hf:org/repo[@revision][/file].";

#[derive(Subcommand)]
enum Command {
    Run(Box<commands::run::Args>),
    Serve(Box<commands::serve::Args>),
    Pull(commands::pull::Args),
    Models(commands::models::Args),
    Inspect(commands::inspect::Args),
    Devices(commands::devices::Args),
    Tokenize(commands::tokenize::Args),
    Logits(commands::logits::Args),
    Perplexity(commands::perplexity::Args),
    Selfcheck(commands::selfcheck::Args),
    Bench(commands::bench::Args),
    Profile(commands::profile::Args),
    Quantize(commands::quantize::Args),
    Completions(commands::completions::Args),
}

/// The command line. A negative number after an option is its value and no option, also where only others are allowed: then
/// the error says which.
fn command() -> clap::Command {
    let negative = |arg: Arg| match arg.is_positional() || !arg.get_action().takes_values() {
        true => arg,
        false => arg.allow_negative_numbers(true),
    };
    Cli::command().mut_subcommands(|command| command.mut_args(negative))
}

/// What every command is given.
pub struct Context {
    /// When the process began, as near as it can tell.
    pub started: Instant,
    pub interrupt: Interrupt,
}

fn main() -> ExitCode {
    let started = Instant::now();
    // Clap ends the process itself for --help (0) and for what it cannot parse (2).
    let cli = Cli::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
    let cx = match Interrupt::install() {
        Ok(interrupt) => Context { started, interrupt },
        Err(error) => return output::end(Err(error)),
    };
    if let Ok(filter) = std::env::var("RUST_LOG")
        && let Some(part) = exotherm_observe::not_understood(&filter)
    {
        output::note(format_args!("note: {part:?} in RUST_LOG is not understood and shows nothing"));
    }
    output::end(run(cli.command, &cx))
}

fn run(command: Command, cx: &Context) -> anyhow::Result<()> {
    match command {
        Command::Run(args) => commands::run::run(&args, cx),
        Command::Serve(args) => commands::serve::run(&args, cx),
        Command::Pull(args) => commands::pull::run(&args, cx),
        Command::Models(args) => commands::models::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args, cx),
        Command::Devices(args) => commands::devices::run(&args),
        Command::Tokenize(args) => commands::tokenize::run(&args, cx),
        Command::Logits(args) => commands::logits::run(&args, cx),
        Command::Perplexity(args) => commands::perplexity::run(&args, cx),
        Command::Selfcheck(args) => commands::selfcheck::run(&args, cx),
        Command::Bench(args) => commands::bench::run(&args, cx),
        Command::Profile(args) => commands::profile::run(&args, cx),
        Command::Quantize(args) => commands::quantize::run(&args, cx),
        Command::Completions(args) => commands::completions::run(&args),
    }
}
