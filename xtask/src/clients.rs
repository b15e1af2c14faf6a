//! The server under the hands of other people's clients.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::python::{call, environment};

/// How long the storm lasts, and how long requests are made up, unless somebody asks for more.
pub const STORM_S: u32 = 60;
const FUZZ_S: u32 = 15;

/// Drives a server of the development build with OpenAI's own client.
pub fn openai(root: &Path, exotherm: &Path, model: &str) -> Result<()> {
    let folder = root.join("xtask/clients");
    let python = environment(root, "clients-venv", &folder.join("requirements.txt"), &[])?;
    call(Command::new(python).arg(folder.join("openai_client.py")).arg(exotherm).arg(model))
}

/// A build without a feature says so instead of doing nothing.
pub fn spans_need_their_feature(exotherm: &Path) -> Result<()> {
    let asked = Command::new(exotherm).args(["serve", "--otlp", "http://127.0.0.1:4318"]).output()?;
    let said = String::from_utf8_lossy(&asked.stderr);
    ensure!(asked.status.code() == Some(2) && said.contains("--features otlp"), "--otlp without it: {said}");
    Ok(())
}

/// Requests made up from the server's own description, right and wrong ones.
pub fn fuzz(root: &Path, exotherm: &Path, model: &str) -> Result<()> {
    call(script(root, "fuzz.py", exotherm, model).arg(FUZZ_S.to_string()))
}

/// Good, bad, cut-off and slow requests all at once.
pub fn storm(root: &Path, exotherm: &Path, model: &str, seconds: u32) -> Result<()> {
    call(script(root, "storm.py", exotherm, model).arg(seconds.to_string()))
}

/// The page in a browser without a window, where there is one; pictures of it are left in `target/page`.
pub fn page(root: &Path, exotherm: &Path, model: &str) -> Result<()> {
    call(script(root, "page.py", exotherm, model).arg(root.join("target/page")))
}

/// A script that needs nothing but Python.
fn script(root: &Path, name: &str, exotherm: &Path, model: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(root.join("xtask/clients").join(name)).arg(exotherm).arg(model);
    command
}
