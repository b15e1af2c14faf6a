//! Makes the golden models and vectors anew: Python scripts in an environment of their own with pinned packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Scripts of xtask/golden that are run, in order.
const SCRIPTS: &[&str] =
    &["quant_vectors.py", "op_vectors.py", "tokenizer_vectors.py", "gguf_sample.py", "models.py"];

pub fn run(root: &Path, filter: Option<&str>) -> Result<()> {
    let scripts: Vec<_> = SCRIPTS.iter().filter(|s| filter.is_none_or(|f| s.contains(f))).collect();
    if scripts.is_empty() {
        bail!("no script matches {filter:?}; there are {}", SCRIPTS.join(", "));
    }
    let folder = root.join("xtask/golden");
    let python = environment(root, &folder)?;
    for script in scripts {
        println!("── {script}");
        call(Command::new(&python).arg(folder.join(script)).current_dir(root))?;
    }
    Ok(())
}

/// A virtual environment under target/ with the pinned packages; made once, kept in step by pip.
fn environment(root: &Path, folder: &Path) -> Result<PathBuf> {
    let venv = root.join("target/golden-venv");
    let python = venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if !python.exists() {
        println!("── a Python environment in {}", venv.display());
        call(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let install = ["-m", "pip", "install", "--quiet", "--requirement"];
    call(Command::new(&python).args(install).arg(folder.join("requirements.txt")))?;
    Ok(python)
}

fn call(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?} could not be started"))?;
    if !status.success() {
        bail!("{command:?} failed");
    }
    Ok(())
}
