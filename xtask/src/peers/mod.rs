//! `cargo xtask bench-peers`: our speed beside llama.cpp's, in turn on the same files with the same threads.

mod client;
mod engines;
mod models;
pub mod served;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::python;
use engines::{Exotherm, Peer};
use models::{Maker, text};
use table::Figures;

/// Built for this processor; with OpenMP it decodes about a tenth slower, which would be no fair peer.
const CMAKE_ARGS: &str = "-DGGML_NATIVE=ON -DGGML_OPENMP=OFF";
/// Sequences that decode together.
const TOGETHER: usize = 16;
/// Tokens of context that decoding at depth begins with.
const DEPTH: usize = 4096;
/// What both are asked about before anything is timed.
const QUESTION: &str = "The lighthouse at the end of the pier was built in 1874 and has been repaired four times since. On \
                        clear evenings its keeper writes down the wind, the tide and the colour of the sky, and then she \
                        goes back to counting waves.";
/// Tokens that both must write alike on F16 weights.
const ALIKE: usize = 24;
/// How far the distributions may be apart, in nats on average, and how often the likeliest token must be the same. llama.cpp
/// rounds activations to 8 bits for most quantized types, which alone costs it about 3e-3 nats against exact arithmetic; of the
/// question's 52 positions the two agree at 49 or more on every file here.
const MEAN_KL: f64 = 1e-2;
const TOP1: f64 = 0.9;

#[derive(Debug, PartialEq)]
pub struct Options {
    models: Vec<String>,
    pairs: usize,
    threads: usize,
    prompt: usize,
    generate: usize,
    exotherm: Option<PathBuf>,
    venv: Option<PathBuf>,
    write: bool,
}

impl Options {
    pub fn parse(options: &[&str]) -> Result<Options> {
        let mut parsed = Options {
            models: Vec::new(),
            pairs: 5,
            threads: 2,
            prompt: 512,
            generate: 128,
            exotherm: None,
            venv: None,
            write: false,
        };
        let mut options = options.iter();
        while let Some(&option) = options.next() {
            let mut value = || options.next().with_context(|| format!("{option} needs a value"));
            match option {
                "--models" => parsed.models = value()?.split(',').map(str::to_string).collect(),
                "--pairs" => parsed.pairs = count(option, value()?)?,
                "--threads" => parsed.threads = count(option, value()?)?,
                "--prompt" => parsed.prompt = count(option, value()?)?,
                "--generate" => parsed.generate = count(option, value()?)?,
                "--exotherm" => parsed.exotherm = Some(value()?.into()),
                "--venv" => parsed.venv = Some(value()?.into()),
                "--write" => parsed.write = true,
                other => bail!("unknown option {other:?}; `cargo xtask help` lists them"),
            }
        }
        if parsed.write && parsed.pairs < 5 {
            bail!("--write keeps results of at least 5 pairs");
        }
        Ok(parsed)
    }

    fn plan(&self, test: Test) -> Plan {
        let word = |n: usize| n.to_string();
        let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        let (seqs, depth, generate) = match test {
            Test::Alone => (1, 0, self.generate),
            Test::Together => (TOGETHER, 0, self.generate.div_ceil(2)),
            Test::Deep => (1, DEPTH, self.generate.div_ceil(2)),
        };
        let prompt = if test == Test::Alone { self.prompt } else { 0 };
        let mut ours = words(&["-p", &word(prompt), "-n", &word(generate)]);
        ours.extend(words(&["--batch", &word(seqs), "--depth", &word(depth)]));
        let mut theirs = vec![words(&["tg", &word(generate), &word(seqs), &word(depth)])];
        if prompt > 0 {
            theirs.insert(0, words(&["pp", &word(prompt)]));
        }
        Plan { seqs, context: prompt.max(depth + generate), ours, theirs, generate }
    }

    /// The comparisons that are asked for.
    fn rows(&self) -> Result<Vec<&'static Row>> {
        let asked = |row: &&Row| match self.models.as_slice() {
            [] => row.has_floor(),
            models => models.iter().any(|m| row.file.contains(m)),
        };
        if let Some(unknown) = self.models.iter().find(|m| !ROWS.iter().any(|row| row.file.contains(*m))) {
            let names: Vec<_> = models::FILES.iter().map(|(name, _)| *name).collect();
            bail!("no model's name holds {unknown:?}; there are {}", names.join(", "));
        }
        Ok(ROWS.iter().filter(asked).collect())
    }
}

/// How a test is asked for.
struct Plan {
    /// Sequences, and the tokens that each has at most.
    seqs: usize,
    context: usize,
    /// Options of `exotherm bench`.
    ours: Vec<String>,
    /// Commands for the other side.
    theirs: Vec<Vec<String>>,
    /// Tokens that each sequence decodes.
    generate: usize,
}

fn count(option: &str, text: &str) -> Result<usize> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => bail!("{option} is {text:?}, it must be a whole number of at least 1"),
    }
}

/// What is measured on a file.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Test {
    /// One sequence: a prompt, and decoding.
    Alone,
    /// 16 sequences that decode together.
    Together,
    /// One sequence decodes at 4,096 tokens of context.
    Deep,
}

/// A comparison, with the least ratios that are to be reached.
struct Row {
    file: &'static str,
    test: Test,
    decode: Option<f64>,
    prompt: Option<f64>,
    /// The least share of the memory's read speed at decoding.
    memory: Option<f64>,
}

impl Row {
    /// Those without are measured when they are asked for by name.
    fn has_floor(&self) -> bool {
        self.decode.is_some() || self.prompt.is_some() || self.memory.is_some()
    }
}

const fn row(
    file: &'static str,
    test: Test,
    decode: Option<f64>,
    prompt: Option<f64>,
    memory: Option<f64>,
) -> Row {
    Row { file, test, decode, prompt, memory }
}

const ROWS: &[Row] = &[
    row("smollm2.q4_1", Test::Alone, Some(2.0), Some(4.0), None),
    row("smollm2.q4_0", Test::Alone, Some(1.5), Some(1.7), None),
    row("smollm2.q8_0", Test::Alone, Some(1.5), Some(2.5), None),
    row("smollm2.q4_k_m", Test::Alone, Some(1.7), Some(2.0), None),
    row("smollm2.f16", Test::Alone, Some(1.2), Some(1.2), None),
    row("smollm2.bf16", Test::Alone, Some(1.3), Some(1.5), None),
    row("qwen2.5-0.5b.q8_0", Test::Alone, Some(1.3), Some(3.0), Some(0.85)),
    row("qwen2.5-0.5b.q4_0", Test::Alone, Some(1.15), Some(2.0), Some(0.85)),
    row("llama-3.2-1b.q8_0", Test::Alone, None, None, None),
    row("llama-3.2-1b.q4_0", Test::Alone, None, None, None),
    row("llama-3.2-1b.q4_k_m", Test::Alone, None, Some(2.0), Some(0.85)),
    row("qwen3-moe.q4_0", Test::Alone, Some(1.5), Some(2.0), None),
    row("rwkv7-0.1b.q8_0", Test::Alone, Some(1.5), Some(2.0), None),
    row("smollm2.q4_1", Test::Together, Some(2.0), None, None),
    row("smollm2.q4_0", Test::Together, Some(2.0), None, None),
    row("smollm2.q8_0", Test::Together, Some(2.0), None, None),
    row("smollm2.q4_k_m", Test::Together, Some(2.0), None, None),
    row("smollm2.f16", Test::Together, Some(2.0), None, None),
    row("smollm2.bf16", Test::Together, Some(2.0), None, None),
    row("qwen2.5-0.5b.q8_0", Test::Together, Some(2.0), None, None),
    row("qwen2.5-0.5b.q4_0", Test::Together, Some(2.0), None, None),
    row("llama-3.2-1b.q4_k_m", Test::Together, Some(2.0), None, None),
    row("qwen3-moe.q4_0", Test::Together, Some(2.0), None, None),
    row("rwkv7-0.1b.q8_0", Test::Together, Some(2.0), None, None),
    row("smollm2.q4_1", Test::Deep, Some(2.0), None, Some(0.7)),
];

/// Both sides, ready to be asked.
struct Prepared {
    scripts: PathBuf,
    python: PathBuf,
    exotherm: Exotherm,
    peer: Peer,
    about: String,
}

impl Prepared {
    fn new(root: &Path, options: &Options) -> Result<Prepared> {
        let scripts = root.join("xtask/peers");
        let python = match &options.venv {
            Some(venv) => python::interpreter(venv),
            None => {
                let build = [("CMAKE_ARGS", CMAKE_ARGS), ("FORCE_CMAKE", "1")];
                python::environment(root, "peers-venv", &scripts.join("requirements.txt"), &build)?
            }
        };
        let binary = match &options.exotherm {
            Some(binary) => binary.clone(),
            None => build(root)?,
        };
        let exotherm = Exotherm { binary, threads: options.threads };
        let mut peer = Peer::start(&python, &scripts.join("peers.py"))?;
        let about = about(&exotherm, &mut peer, options)?;
        Ok(Prepared { scripts, python, exotherm, peer, about })
    }
}

pub fn run(root: &Path, options: &Options) -> Result<()> {
    if options.write && !options.models.is_empty() {
        bail!("--write keeps the whole table; without --models all of it is measured");
    }
    let rows = options.rows()?;
    let Prepared { scripts, python, exotherm, mut peer, about } = Prepared::new(root, options)?;
    println!("{about}");
    let folder = root.join("target/peers-models");
    let maker = Maker { folder: &folder, scripts: &scripts, python: &python, exotherm: &exotherm };
    let mut session = Session {
        options,
        exotherm: &exotherm,
        peer: &mut peer,
        folder: &folder,
        notes: Vec::new(),
        differ: Vec::new(),
    };
    let floats = maker.path("smollm2.f16", session.peer)?;
    session.same_tokens(&floats)?;
    let mut measured = Vec::new();
    for row in rows {
        let path = maker.path(row.file, session.peer)?;
        let figures = session.measure(row, &path)?;
        eprintln!("{}", table::line(row, &figures));
        measured.push((row, figures));
    }
    let notes = session.notes.join("\n");
    let result = format!("{}\n\n{notes}\n", table::whole(&measured));
    println!("\n{result}");
    if !session.differ.is_empty() {
        bail!(
            "the two do not compute the same with {}: its figures are worth nothing",
            session.differ.join(", ")
        );
    }
    if options.write {
        let path = root.join("benches/PEERS.md");
        let kept = format!(
            "# Beside llama.cpp\n\nThe last output of `cargo xtask bench-peers --write`.\n\n{about}\n\n{result}"
        );
        std::fs::write(&path, kept).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

fn build(root: &Path) -> Result<PathBuf> {
    println!("── the exotherm binary");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let package = ["build", "--release", "--quiet", "--package", "exotherm-cli", "--bin", "exotherm"];
    python::call(command.args(package).current_dir(root))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("release").join(if cfg!(windows) { "exotherm.exe" } else { "exotherm" }))
}

/// When, where and with which versions; an error where llama.cpp uses OpenMP after all.
fn about(exotherm: &Exotherm, peer: &mut Peer, options: &Options) -> Result<String> {
    let info = peer.ask(&["info"])?;
    let openmp = info["openmp"].as_array().context("the peer does not tell about OpenMP")?;
    if !openmp.is_empty() || info["libraries"].as_u64().unwrap_or(0) == 0 {
        bail!(
            "this llama-cpp-python is built with OpenMP ({openmp:?}); build it from source with {CMAKE_ARGS}"
        );
    }
    let devices = exotherm.json(&["devices"])?;
    let level = devices["devices"][0]["isa"].as_str().context("devices tells no level")?;
    let word = |name: &str| info[name].as_str().unwrap_or("unknown").trim().to_string();
    let Options { pairs, threads, .. } = options;
    Ok(format!(
        "- {}\n- {}\n- {} at {level}; llama-cpp-python {}, built from source with `{CMAKE_ARGS}`: neither its libraries nor \
         llama_print_system_info name OpenMP; {}\n- {threads} threads for both, {pairs} pairs, who goes first alternates",
        jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z"),
        machine(),
        exotherm.version()?,
        word("version"),
        word("system").trim_end_matches([' ', '|']),
    ))
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let name = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown processor".into());
    let load = read("/proc/loadavg").split(' ').next().unwrap_or("unknown").to_string();
    format!("{name}, {cores} hardware threads; load average at the start {load}")
}

struct Session<'a> {
    options: &'a Options,
    exotherm: &'a Exotherm,
    peer: &'a mut Peer,
    folder: &'a Path,
    /// What was found before the timing.
    notes: Vec<String>,
    /// Files of which the two hold different distributions.
    differ: Vec<String>,
}

impl Session<'_> {
    fn load(&mut self, path: &Path, context: usize, seqs: usize) -> Result<String> {
        let (threads, context, seqs) =
            (self.options.threads.to_string(), context.to_string(), seqs.to_string());
        let answer = self.peer.ask(&["load", &text(path)?, &threads, &context, &seqs])?;
        Ok(answer["flash_attention"].as_str().unwrap_or("unknown").to_string())
    }

    /// The question's ids with commas between them.
    fn question(&self, path: &Path) -> Result<String> {
        let tokens = self.exotherm.json(&["tokenize", &text(path)?, QUESTION])?;
        let ids = tokens["ids"].as_array().context("tokenize tells no ids")?;
        Ok(ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(","))
    }

    /// On F16 weights both must write the same tokens.
    fn same_tokens(&mut self, path: &Path) -> Result<()> {
        let (ids, n) = (self.question(path)?, ALIKE.to_string());
        self.load(path, 512, 1)?;
        let theirs = self.peer.ask(&["greedy", &n, &ids])?["tokens"].clone();
        let options = ["--raw", "--temperature", "0", "--max-tokens", &n];
        let ours =
            self.exotherm.json(&[&["run", &text(path)?, QUESTION][..], &options].concat())?["tokens"].clone();
        if ours != theirs {
            bail!("greedy tokens on F16 weights differ: exotherm {ours}, llama.cpp {theirs}");
        }
        self.notes.push(format!("- Both write the same {n} tokens greedily on F16 weights."));
        Ok(())
    }

    /// Both must hold about the same distributions after every token of the question.
    fn same_logits(&mut self, name: &str, path: &Path) -> Result<()> {
        let ids = self.question(path)?;
        let positions: Vec<String> = (0..ids.split(',').count()).map(|i| i.to_string()).collect();
        // `logits` would leave activations as they are where what is timed rounds them to BF16.
        let devices = self.exotherm.json(&["devices"])?;
        let isa = devices["devices"][0]["isa"].as_str().context("devices tells no level")?;
        let positions_given = positions.join(",");
        let args = ["logits", &text(path)?, "--tokens", &ids, "--positions", &positions_given, "--isa", isa];
        let logits = self.exotherm.json(&args)?;
        let file = self.folder.join("logits.json");
        std::fs::write(&file, logits.to_string())?;
        let compared = self.peer.ask(&["compare", &text(&file)?, &ids]);
        std::fs::remove_file(&file)?;
        let compared = compared?;
        let number = |field: &str| compared[field].as_f64().unwrap_or(f64::NAN);
        let (top1, mean, max) = (number("top1"), number("mean_kl"), number("max_kl"));
        let said = format!(
            "- {name}: over {} positions the likeliest token is the same at {:.1} %, mean KL {mean:.1e}, max {max:.1e} nats \
             (at least {:.0} %, at most {MEAN_KL:.0e}).",
            positions.len(),
            100.0 * top1,
            100.0 * TOP1
        );
        if !(top1 >= TOP1 && mean <= MEAN_KL) {
            eprintln!("the two do not compute the same model:\n{said}");
            self.differ.push(name.to_string());
        }
        self.notes.push(said);
        Ok(())
    }

    /// The pairs of one comparison. Right before and after our turn of each the memory's speed is measured.
    fn measure(&mut self, row: &Row, path: &Path) -> Result<Figures> {
        let pairs = self.options.pairs;
        let Plan { seqs, context, ours, theirs, generate } = self.options.plan(row.test);
        let flash = self.load(path, context.next_multiple_of(256), seqs)?;
        if row.test == Test::Alone {
            self.same_logits(row.file, path)?;
            self.notes.push(format!("- {}: llama.cpp's flash attention: {flash}.", row.file));
            // The question has taken the place of what the tests leave there.
            self.load(path, context.next_multiple_of(256), seqs)?;
        }
        let mut figures = Figures::new(self.kv_bytes(row, path, generate)?);
        for pair in 0..pairs {
            eprintln!("{}, pair {} of {pairs}", row.file, pair + 1);
            let mut speeds = [Vec::new(), Vec::new()];
            for turn in 0..2 {
                let who = (pair + turn) % 2;
                speeds[who] = match who {
                    0 => {
                        let before = self.exotherm.read_speed(self.folder)?;
                        let (speeds, bytes) = self.exotherm.bench(path, &ours)?;
                        figures.memory.push((before + self.exotherm.read_speed(self.folder)?) / 2.0);
                        figures.weight_bytes = bytes;
                        speeds
                    }
                    _ => {
                        let ask = |words: &Vec<String>| {
                            self.peer.speed(&words.iter().map(String::as_str).collect::<Vec<_>>())
                        };
                        theirs.iter().map(ask).collect::<Result<_>>()?
                    }
                };
            }
            figures.add(&speeds)?;
        }
        Ok(figures)
    }

    /// Bytes of keys and values that a token decoded at depth reads, on average.
    fn kv_bytes(&self, row: &Row, path: &Path, tokens: usize) -> Result<f64> {
        if row.test != Test::Deep {
            return Ok(0.0);
        }
        let inspected = self.exotherm.json(&["inspect", &text(path)?])?;
        let per_token = inspected["memory"]["kv_bytes_per_token"].as_f64();
        Ok(per_token.context("inspect tells no KV bytes")? * (DEPTH as f64 + tokens as f64 / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_wrong_ones_refused() {
        let parsed = Options::parse(&["--models", "q4_1,rwkv", "--pairs", "7", "--write"]).expect("fine");
        assert_eq!((parsed.models.len(), parsed.pairs, parsed.threads, parsed.write), (2, 7, 2, true));
        let rows = parsed.rows().expect("they are there");
        assert!(rows.iter().all(|row| row.file.contains("q4_1") || row.file.contains("rwkv")));
        assert_eq!(rows.len(), 5);
        let rows = Options::parse(&[]).expect("fine").rows().expect("they are there");
        assert!(rows.iter().all(|row| row.has_floor()) && rows.len() < ROWS.len());
        for wrong in [
            &["--pairs"][..],
            &["--pairs", "0"],
            &["--threads", "x"],
            &["--quick"],
            &["--write", "--pairs", "1"],
        ] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
        for models in ["gpt5", "smollm2.q4_1,gpt5"] {
            let unknown = Options::parse(&["--models", models]).expect("read").rows();
            assert!(unknown.is_err_and(|e| e.to_string().contains("\"gpt5\"; there are smollm2.q4_1")));
        }
    }

    #[test]
    fn every_row_has_its_file() {
        for row in ROWS {
            assert!(models::FILES.iter().any(|(name, _)| *name == row.file), "{}", row.file);
        }
    }
}
