//! The project's own chores. `cargo xtask test` is what CI runs.

mod clients;
mod golden;
mod gpu;
mod peers;
mod python;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
The project's own chores.

Usage: cargo xtask <COMMAND>

Commands:
  test [--offline] [--heavy]  format check, clippy, tidy checks and all tests, after fetching what they need
                              --offline  leave out what needs a network: tests on real weights, and of the server
                                         with a real model (and say so); a driver for a GPU in software is not installed
                              --heavy    also the tests on gemma3-270m, 253 MB, and all cases on a GPU
  tidy                        the checks of the source tree alone: lengths, layering, words that must not be there
  golden [FILTER]             make the golden models and vectors anew in a Python environment of their own
  bench-peers [OPTIONS]       our speed beside llama.cpp's, in turn on the same files; for an idle machine
                              --models A,B     those whose names hold one of these [all for which a ratio is to be reached]
                              --pairs N        times that both are measured [5]
                              --threads N      of each [2]
                              --prompt N       tokens of a prompt [512]
                              --generate N     tokens decoded [128]; half of them with 16 sequences and at depth
                              --exotherm FILE  this binary instead of building one
                              --venv DIR       this Python environment instead of making one
                              --write          keep the result in benches/PEERS.md
  bench-serve [OPTIONS]       16 streams through our server beside our engine alone and llama.cpp, with the same options;
                              --write keeps the result in benches/SERVE.md
  storm --minutes N           good, bad, cut-off and slow requests on a server of this machine; its memory must stay
                              as it is and nothing may be left behind (`test` does it for one minute)
  help                        this text
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["test", options @ ..] => test(TestOptions::parse(options)?),
        ["tidy"] => tidy::run(&root()),
        ["storm", "--minutes", minutes] => storm(minutes),
        ["golden"] => golden::run(&root(), None),
        ["bench-peers", options @ ..] => peers::run(&root(), &peers::Options::parse(options)?),
        ["bench-serve", options @ ..] => peers::served::run(&root(), &peers::Options::parse(options)?),
        ["golden", filter] => golden::run(&root(), Some(filter)),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("unknown command {:?}\n\n{USAGE}", other.join(" ")),
    }
}

/// The repository's root, wherever the command was started.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.to_path_buf(), Path::to_path_buf)
}

/// The server's tests in which it matters most what computes; of refusals, bodies and texts nothing comes to a backend. In
/// software these take most of a minute.
const SERVED_BY_GPU: [&str; 6] = ["--test", "answers", "--test", "echo", "--test", "lifecycle"];

struct TestOptions {
    offline: bool,
    heavy: bool,
}

impl TestOptions {
    fn parse(options: &[&str]) -> Result<TestOptions> {
        let mut parsed = TestOptions { offline: false, heavy: false };
        for option in options {
            match *option {
                "--offline" => parsed.offline = true,
                "--heavy" => parsed.heavy = true,
                other => bail!("unknown option {other:?}; there are --offline and --heavy"),
            }
        }
        if parsed.offline && parsed.heavy {
            bail!("--heavy needs weights that --offline does not fetch");
        }
        Ok(parsed)
    }
}

fn test(options: TestOptions) -> Result<()> {
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    say("tidy");
    tidy::run(&root())?;
    // What is off by default is tested as well; the binary for the tests further below is built without it.
    let features = "exotherm-server/otlp,exotherm-cli/otlp,".to_string()
        + match (options.offline, options.heavy) {
            (true, _) => "",
            (false, false) => "exotherm-cli/real-weights",
            (false, true) => "exotherm-cli/heavy-weights",
        };
    let with_features = ["--workspace", "--all-targets", "--features", &features];
    step("clippy", cargo(&["clippy"]).args(with_features).args(["--quiet", "--", "-D", "warnings"]))?;
    check_licences()?;
    check_neon()?;
    if options.offline {
        println!("SKIPPED: tests on real weights (--offline)");
    } else {
        fetch("smollm2")?;
        if options.heavy {
            fetch("gemma3-270m")?;
        } else {
            println!("SKIPPED: tests on gemma3-270m (--heavy runs them)");
        }
    }
    let mut tests = cargo(&["test", "--workspace", "--features", &features]);
    let has_gpu = gpu::prepare(&mut tests, options.offline, options.heavy);
    step("tests", &mut tests)?;
    if has_gpu {
        let mut served = cargo(&["test", "--workspace", "--features", &features]);
        gpu::prepare(&mut served, options.offline, options.heavy);
        step("the server on a GPU", served.args(SERVED_BY_GPU).env("EXOTHERM_TEST_BACKEND", "gpu"))?;
    }
    if options.offline {
        println!(
            "SKIPPED: the server under OpenAI's client, made-up requests, a browser and a storm (--offline)"
        );
        return Ok(());
    }
    let exotherm = development_binary()?;
    clients::spans_need_their_feature(&exotherm)?;
    say("the server under OpenAI's client");
    clients::openai(&root(), &exotherm, "smollm2")?;
    say("the server under requests made up from its own description");
    clients::fuzz(&root(), &exotherm, "smollm2")?;
    say("the server's page in a browser");
    clients::page(&root(), &exotherm, "smollm2")?;
    say("the server in a storm");
    clients::storm(&root(), &exotherm, "smollm2", clients::STORM_S)
}

/// A storm that lasts as long as somebody wants to look at it.
fn storm(minutes: &str) -> Result<()> {
    let minutes: u32 = minutes.parse().context("--minutes is a whole number")?;
    let seconds = minutes.checked_mul(60).context("so many minutes cannot be counted")?;
    fetch("smollm2")?;
    clients::storm(&root(), &development_binary()?, "smollm2", seconds)
}

/// The binary as cargo builds it for development.
fn development_binary() -> Result<PathBuf> {
    step("the binary", &mut cargo(&["build", "--quiet", "--package", "exotherm-cli"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    Ok(root().join(target).join("debug").join(format!("exotherm{}", std::env::consts::EXE_SUFFIX)))
}

/// Puts a model into the user's model cache, which the tests on real weights read.
fn fetch(name: &str) -> Result<()> {
    let pull = ["run", "--quiet", "--package", "exotherm-cli", "--bin", "exotherm", "--", "pull", name];
    step(&format!("weights: {name}"), &mut cargo(&pull))
        .with_context(|| format!("the tests on real weights need {name}; without a network use --offline"))
}

fn check_licences() -> Result<()> {
    let installed = Command::new("cargo").args(["deny", "--version"]).output();
    if !installed.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: licences and sources of dependencies (cargo-deny is not installed)");
        return Ok(());
    }
    step("licences", &mut cargo(&["deny", "--log-level", "error", "check", "licenses", "bans", "sources"]))
}

/// The kernels for NEON, which no test on another processor runs, at least compile.
fn check_neon() -> Result<()> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let library = ["--print", "target-libdir", "--target", TARGET];
    let told = Command::new(compiler).args(library).current_dir(root()).output();
    let folder = told.ok().and_then(|told| String::from_utf8(told.stdout).ok());
    let files = folder.and_then(|folder| std::fs::read_dir(folder.trim()).ok());
    if files.is_none_or(|mut files| files.next().is_none()) {
        println!("SKIPPED: the kernels for {TARGET} (its standard library is not installed)");
        return Ok(());
    }
    let check = ["check", "--quiet", "--package", "exotherm-kernels", "--target", TARGET];
    step(&format!("the kernels for {TARGET}"), &mut cargo(&check))
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

fn say(what: &str) {
    println!("── {what}");
}

fn step(what: &str, command: &mut Command) -> Result<()> {
    say(what);
    let status = command.status().with_context(|| format!("{command:?} could not be started"))?;
    if !status.success() {
        bail!("{what} failed");
    }
    Ok(())
}
