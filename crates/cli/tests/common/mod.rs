//! Runs the binary as a user would, with a store, a hub and a home of the test's own.

// Every test file compiles this for itself and uses a part of it.
#![allow(dead_code)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden").join(case)
}

/// The tokens, positions and logits of a golden model.
pub fn expected(case: &str) -> Value {
    let text = fs::read_to_string(golden(case).join("expected.json")).expect("a golden case");
    serde_json::from_str(&text).expect("JSON")
}

/// Numbers of a JSON array.
pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("an array").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// Ids with commas between them, as the command line takes them.
pub fn list(value: &Value) -> String {
    numbers(value).iter().map(|v| (*v as u64).to_string()).collect::<Vec<_>>().join(",")
}

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        assert_eq!(self.stdout.matches('\n').count(), 1, "one line: {}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    #[track_caller]
    pub fn fine(self) -> Ran {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// Failed with this code, nothing on stdout, and a message that has all of `words`.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        words.iter().for_each(|word| assert!(self.stderr.contains(word), "no {word:?} in: {}", self.stderr));
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        let code = output.status.code().expect("the process ended by itself");
        Ran { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A user with nothing but a temporary folder.
pub struct User {
    pub dir: TempDir,
}

impl User {
    pub fn new() -> User {
        User { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_exotherm"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        for variable in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "XDG_CACHE_HOME"] {
            command.env_remove(variable);
        }
        // An address that nobody answers at: no test may reach a network.
        command.env("HF_ENDPOINT", "http://127.0.0.1:1").env("HF_HOME", self.path("hf"));
        command.env("PIP_INDEX_URL", "http://127.0.0.1:1").env("PIP_RETRIES", "0");
        command.env("EXOTHERM_HOME", self.path("store"));
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().expect("the binary starts").into()
    }

    pub fn run_with_stdin(&self, args: &[&str], stdin: &[u8]) -> Ran {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        // A command that reads no stdin may be gone already.
        let _ = pipe.write_all(stdin);
        drop(pipe);
        child.wait_with_output().expect("it ends").into()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).expect("written");
        path.display().to_string()
    }

    /// A golden model with a tokenizer: ids 1 to 95 are the printable ASCII characters, 96 is a newline, the others are
    /// pairs of letters. With a chat template if asked for.
    pub fn talking_model(&self, name: &str, template: bool) -> String {
        const VOCAB: usize = 113;
        let dir = self.path(name);
        fs::create_dir_all(&dir).expect("a folder");
        for file in ["config.json", "model.safetensors"] {
            fs::copy(golden("qwen3").join(file), dir.join(file)).expect("a small copy");
        }
        let mut tokens: Vec<String> = (32u8..127).map(|c| char::from(c).to_string()).collect();
        tokens.push("\n".into());
        tokens.extend((b'a'..=b'z').map(|c| format!("q{}", char::from(c))).take(VOCAB - 1 - tokens.len()));
        let line = |(i, token): (usize, &String)| {
            let escaped = token.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
            format!("{} '{escaped}' {}\n", i + 1, token.len())
        };
        let vocab: String = tokens.iter().enumerate().map(line).collect();
        fs::write(dir.join("rwkv_vocab_test.txt"), vocab).expect("written");
        if template {
            let jinja = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[bot]";
            fs::write(dir.join("chat_template.jinja"), jinja).expect("written");
        }
        dir.display().to_string()
    }
}
