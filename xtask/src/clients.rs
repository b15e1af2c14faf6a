//! The server under the hands of other people's clients.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::python::{call, environment};

/// How long the storm lasts.
const STORM_S: u32 = 60;

/// Drives a server of the development build with OpenAI's own client.
pub fn openai(root: &Path, exotherm: &Path, model: &str) -> Result<()> {
    let folder = root.join("xtask/clients");
    let python = environment(root, "clients-venv", &folder.join("requirements.txt"), &[])?;
    call(Command::new(python).arg(folder.join("openai_client.py")).arg(exotherm).arg(model))
}

/// Good, bad, cut-off and slow requests all at once. Its script needs nothing but Python.
pub fn storm(root: &Path, exotherm: &Path, model: &str) -> Result<()> {
    let script = root.join("xtask/clients/storm.py");
    call(Command::new("python3").arg(script).arg(exotherm).arg(model).arg(STORM_S.to_string()))
}
