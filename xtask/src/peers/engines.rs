//! The two engines: ours, a process for each measurement, and llama.cpp, kept loaded by a Python script.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::models::text;

pub struct Exotherm {
    pub binary: PathBuf,
    pub threads: usize,
}

impl Exotherm {
    /// What a command prints with --json.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(&self.binary);
        let output = command.args(args).arg("--json").stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("{} could not be started", self.binary.display()))?;
        if !output.status.success() {
            bail!("exotherm {} failed", args.join(" "));
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("exotherm {} is no JSON", args.join(" ")))
    }

    /// Bytes per second that the threads read memory with: the median of many short rounds, because decoding, too, goes
    /// through the good and the bad moments of a machine. What was measured before is forgotten, or the best moment of all would
    /// be told every time; what is measured on the way is kept under `home`, not among the user's own measurements.
    pub fn read_speed(&self, home: &Path) -> Result<f64> {
        let threads = self.threads.to_string();
        let mut command = Command::new(&self.binary);
        command.args([
            "devices",
            "--measure",
            "--forget",
            "--seconds",
            "0.3",
            "--threads",
            &threads,
            "--json",
        ]);
        let output = command.env("EXOTHERM_HOME", home).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            bail!("exotherm devices --measure failed");
        }
        let told: Value = serde_json::from_slice(&output.stdout).context("exotherm devices is no JSON")?;
        let speed = &told["devices"][0]["limits"]["memory_read_bytes_s"]["median"];
        speed.as_f64().context("exotherm devices tells no speed of memory")
    }

    pub fn version(&self) -> Result<String> {
        let output = Command::new(&self.binary).arg("--version").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
    }

    pub fn pull(&self, name: &str) -> Result<PathBuf> {
        let pulled = self.json(&["pull", name])?;
        Ok(pulled["path"].as_str().context("pull tells no path")?.into())
    }

    pub fn quantize(&self, from: &Path, to: &Path, dtype: &str) -> Result<()> {
        self.json(&["quantize", &text(from)?, &text(to)?, "--to", dtype]).map(|_| ())
    }

    /// Tokens per second of each test that the options name, one run after one unmeasured, and the bytes of weights that
    /// a token reads.
    pub fn bench(&self, model: &Path, options: &[String]) -> Result<(Vec<f64>, f64)> {
        let (model, threads) = (text(model)?, self.threads.to_string());
        let mut args = vec!["bench", &model, "-r", "1", "--threads", &threads];
        args.extend(options.iter().map(String::as_str));
        let json = self.json(&args)?;
        let tests = json["tests"].as_array().context("bench tells no tests")?;
        let speeds: Option<Vec<f64>> = tests.iter().map(|test| test["tok_s"].as_f64()).collect();
        let bytes = json["weight_bytes_per_token"].as_f64().context("bench tells no bytes")?;
        Ok((speeds.context("bench tells no speed")?, bytes))
    }
}

/// llama.cpp. It ends when its stdin does.
pub struct Peer {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    pub fn start(python: &Path, script: &Path) -> Result<Peer> {
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} could not be started", python.display()))?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().context("no pipe from the peer")?);
        Ok(Peer { child, stdin, stdout })
    }

    /// Sends the words of a command and waits for the answer.
    pub fn ask(&mut self, words: &[&str]) -> Result<Value> {
        let stdin = self.stdin.as_mut().context("the peer has been told to end")?;
        writeln!(stdin, "{}", words.join("\t")).context("the peer is gone")?;
        stdin.flush()?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("{words:?}: the peer is gone"))?;
        match answer["error"].as_str() {
            Some(error) => bail!("llama.cpp: {error}"),
            None => Ok(answer),
        }
    }

    pub fn speed(&mut self, words: &[&str]) -> Result<f64> {
        self.ask(words)?["tok_s"].as_f64().context("the peer tells no speed")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}
