//! The server under the hands of other people's clients.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::python::{call, environment};

/// Drives a server of the development build with OpenAI's own client.
pub fn openai(root: &Path, exotherm: &Path, model: &str) -> Result<()> {
    let folder = root.join("xtask/clients");
    let python = environment(root, "clients-venv", &folder.join("requirements.txt"), &[])?;
    call(Command::new(python).arg(folder.join("openai_client.py")).arg(exotherm).arg(model))
}
