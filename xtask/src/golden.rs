//! Makes the golden models and vectors anew: Python scripts in an environment of their own with pinned packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::python::{call, environment};

/// Scripts of xtask/golden that are run, in order.
const SCRIPTS: &[&str] =
    &["quant_vectors.py", "op_vectors.py", "tokenizer_vectors.py", "gguf_sample.py", "models.py"];

pub fn run(root: &Path, filter: Option<&str>) -> Result<()> {
    let scripts: Vec<_> = SCRIPTS.iter().filter(|s| filter.is_none_or(|f| s.contains(f))).collect();
    if scripts.is_empty() {
        bail!("no script matches {filter:?}; there are {}", SCRIPTS.join(", "));
    }
    let folder = root.join("xtask/golden");
    let python = environment(root, "golden-venv", &folder.join("requirements.txt"), &[])?;
    for script in scripts {
        println!("── {script}");
        call(Command::new(&python).arg(folder.join(script)).current_dir(root))?;
    }
    Ok(())
}
