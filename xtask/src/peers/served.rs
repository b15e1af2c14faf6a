//! `cargo xtask bench-serve`: what comes through our server, beside our engine alone and llama.cpp, in turn.

use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::client::{Server, Streamed};
use super::engines::Exotherm;
use super::models::{Maker, text};
use super::table::median;
use super::{Options, Prepared, Row, TOGETHER, Test};

/// Least ratio to the engine alone and to llama.cpp, most microseconds a token on the server's own threads, least share
/// of the speed of prompts, and the largest part of a prompt's time that its repetition may take.
const OF_ENGINE: f64 = 0.9;
const OF_PEER: f64 = 2.0;
const TOKEN_US: f64 = 20.0;
const OF_PROMPT: f64 = 0.7;
const AGAIN: f64 = 0.05;
/// Tokens that two prompts have in common, and those after them in which they differ.
const PREFIX: usize = 2000;
const REST: usize = 16;

/// What was measured on one file, a number for each round.
#[derive(Default)]
struct Figures {
    served: Vec<f64>,
    engine: Vec<f64>,
    peer: Vec<f64>,
    prompt: Vec<f64>,
    token_us: Vec<f64>,
    /// Seconds to the first token, the first time and again.
    first: Vec<f64>,
    again: Vec<f64>,
}

pub fn run(root: &Path, options: &Options) -> Result<()> {
    let asked = options.rows()?;
    let rows: Vec<&Row> = asked.into_iter().filter(|row| row.test == Test::Together).collect();
    if rows.is_empty() {
        bail!("none of these models is measured with {TOGETHER} sequences");
    }
    let Prepared { scripts, python, exotherm, mut peer, about } = Prepared::new(root, options)?;
    println!("{about}");
    let folder = root.join("target/peers-models");
    let maker = Maker { folder: &folder, scripts: &scripts, python: &python, exotherm: &exotherm };
    let mut lines = vec![HEAD.to_string()];
    for row in rows {
        let path = maker.path(row.file, &mut peer)?;
        let threads = options.threads.to_string();
        let context = options.generate.next_multiple_of(256).to_string();
        peer.ask(&["load", &text(&path)?, &threads, &context, &TOGETHER.to_string()])?;
        let server = Server::start(&exotherm.binary, &[&text(&path)?, "--threads", &threads])?;
        let mut figures = Figures::default();
        for round in 0..options.pairs {
            eprintln!("{}, round {} of {}", row.file, round + 1, options.pairs);
            for turn in 0..3 {
                match (round + turn) % 3 {
                    0 => figures.serve(&server, options)?,
                    1 => figures.run_engine(&exotherm, &path, options)?,
                    _ => {
                        let words = ["tg", &options.generate.to_string(), &TOGETHER.to_string(), "0"];
                        figures.peer.push(peer.speed(&words)?);
                    }
                }
            }
            figures.repeat(&server, round)?;
        }
        lines.push(figures.line(row.file));
        eprintln!("{}", lines[lines.len() - 1]);
    }
    let result = lines.join("\n");
    println!("\n{result}");
    if options.write {
        let path = root.join("benches/SERVE.md");
        let kept = format!(
            "# Through the server\n\nThe last output of `cargo xtask bench-serve --write`.\n\n{about}\n\n{result}\n"
        );
        std::fs::write(&path, kept).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

const HEAD: &str = "\
Tokens per second of 16 streams together, medians; ratios are medians of the rounds' (least–most). `served` is what one client
process read over HTTP, from the first request to the last event; `engine` is `exotherm bench --batch 16`; llama.cpp's is
`llama_decode` alone. The cost of a token is what all threads of the server but the engine's ran for, the system's part in it
included. The last column is the time to the first token of a prompt whose first 2,000 tokens the server has read before, as the
beginning of another, next to that other's.

| model | served | engine | served / engine | llama.cpp | served / llama.cpp | engine / its prompts of 512 | µs a token | again |
|---|---|---|---|---|---|---|---|---|";

impl Figures {
    /// All streams at once, each of them begun with another token.
    fn serve(&mut self, server: &Server, options: &Options) -> Result<()> {
        let (ready, before) = (Barrier::new(TOGETHER + 1), server.serving_nanos());
        let (streams, seconds) = thread::scope(|scope| {
            let stream = |i: usize| server.complete(&[1000 + 97 * i as u32], options.generate, &ready);
            let streams: Vec<_> = (0..TOGETHER).map(|i| scope.spawn(move || stream(i))).collect();
            ready.wait();
            let begin = Instant::now();
            let streams: Vec<Result<Streamed>> = streams
                .into_iter()
                .map(|s| s.join().unwrap_or_else(|_| bail!("a client panicked")))
                .collect();
            (streams, begin.elapsed().as_secs_f64())
        });
        let mut tokens = 0;
        for stream in streams {
            tokens += stream?.tokens;
        }
        self.served.push(tokens as f64 / seconds);
        if let (Some(before), Some(after)) = (before, server.serving_nanos()) {
            self.token_us.push((after - before) as f64 / 1e3 / tokens as f64);
        }
        Ok(())
    }

    fn run_engine(&mut self, exotherm: &Exotherm, path: &Path, options: &Options) -> Result<()> {
        let (prompt, generate) = (options.prompt.to_string(), options.generate.to_string());
        let together = TOGETHER.to_string();
        let words = ["-p", &prompt, "-n", &generate, "--batch", &together].map(String::from);
        match exotherm.bench(path, &words)?.0[..] {
            [prompt, together] => {
                self.prompt.push(prompt);
                self.engine.push(together);
                Ok(())
            }
            ref other => bail!("bench told {} speeds instead of two", other.len()),
        }
    }

    /// Two prompts with a long beginning in common, another one in every round.
    fn repeat(&mut self, server: &Server, round: usize) -> Result<()> {
        let common = (0..PREFIX).map(|i| 100 + (i * 7 + round * 31) as u32 % 40_000);
        let alone = Barrier::new(1);
        let first_token = |rest: u32| -> Result<f64> {
            let prompt: Vec<u32> = common.clone().chain(std::iter::repeat_n(rest, REST)).collect();
            Ok(server.complete(&prompt, 4, &alone)?.first_token.as_secs_f64())
        };
        self.first.push(first_token(50)?);
        self.again.push(first_token(60)?);
        Ok(())
    }

    fn line(&self, file: &str) -> String {
        let of = |of: &[f64], to: &[f64]| -> Vec<f64> { of.iter().zip(to).map(|(a, b)| a / b).collect() };
        let least = |ratios: &[f64], floor: f64| {
            format!("{}, floor {floor}: {}", range(ratios), met(median(ratios) >= floor))
        };
        let cost = match self.token_us[..] {
            [] => "not told here".to_string(),
            _ => {
                let cost = median(&self.token_us);
                format!("{cost:.1}, at most {TOKEN_US}: {}", met(cost < TOKEN_US))
            }
        };
        let again = median(&of(&self.again, &self.first));
        format!(
            "| {file} | {:.1} | {:.1} | {} | {:.1} | {} | {} | {cost} | {:.1} % of {:.2} s, at most {:.0} %: {} |",
            median(&self.served),
            median(&self.engine),
            least(&of(&self.served, &self.engine), OF_ENGINE),
            median(&self.peer),
            least(&of(&self.served, &self.peer), OF_PEER),
            least(&of(&self.engine, &self.prompt), OF_PROMPT),
            100.0 * again,
            median(&self.first),
            100.0 * AGAIN,
            met(again <= AGAIN),
        )
    }
}

fn range(ratios: &[f64]) -> String {
    let fold = |f: fn(f64, f64) -> f64, start| ratios.iter().copied().fold(start, f);
    format!("{:.2} ({:.2}–{:.2})", median(ratios), fold(f64::min, f64::INFINITY), fold(f64::max, 0.0))
}

fn met(met: bool) -> &'static str {
    if met { "met" } else { "**missed**" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_met() {
        let figures = Figures {
            served: vec![95.0, 80.0, 100.0],
            engine: vec![100.0; 3],
            peer: vec![50.0, 40.0, 25.0],
            prompt: vec![200.0; 3],
            token_us: vec![12.0, 30.0, 11.0],
            first: vec![2.0; 3],
            again: vec![0.1, 0.02, 0.05],
        };
        let line = figures.line("some");
        for part in [
            "| 95.0 | 100.0 | 0.95 (0.80–1.00), floor 0.9: met |",
            "| 40.0 | 2.00 (1.90–4.00), floor 2: met |",
            "| 0.50 (0.50–0.50), floor 0.7: **missed** |",
            "| 12.0, at most 20: met | 2.5 % of 2.00 s, at most 5 %: met |",
        ] {
            assert!(line.contains(part), "{line}");
        }
    }
}
