//! Python environments of the project's own under target/.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A virtual environment `target/NAME` with the packages of a requirements file; made once, kept in step by pip, which
/// builds packages with these variables.
pub fn environment(
    root: &Path,
    name: &str,
    requirements: &Path,
    variables: &[(&str, &str)],
) -> Result<PathBuf> {
    let venv = root.join("target").join(name);
    let python = interpreter(&venv);
    if !python.exists() {
        println!("── a Python environment in {}", venv.display());
        call(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    // A wheel in pip's cache may have been built with other variables.
    let cache: &[&str] = if variables.is_empty() { &[] } else { &["--no-cache-dir"] };
    let install = ["-m", "pip", "install", "--quiet", "--requirement"];
    let mut pip = Command::new(&python);
    call(pip.args(install).arg(requirements).args(cache).envs(variables.iter().copied()))?;
    Ok(python)
}

/// The interpreter of a virtual environment.
pub fn interpreter(venv: &Path) -> PathBuf {
    venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" })
}

pub fn call(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?} could not be started"))?;
    if !status.success() {
        bail!("{command:?} failed");
    }
    Ok(())
}
