//! The files that are compared on, made where they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::engines::{Exotherm, Peer};
use crate::python::call;

/// Where a file comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// What `exotherm pull` fetches.
    Pulled,
    /// Another file in another type, by `exotherm quantize`.
    Quantized { from: &'static str, to: &'static str },
    /// The same by ggml's quantizer, which knows mixtures of types.
    Mixed { from: &'static str, to: &'static str },
    /// Random weights in a real model's shape.
    Random { shape: &'static str, to: &'static str },
}

pub const PULLED: &str = "smollm2.q4_1";

/// How every file is had, those first that others are made of.
pub const FILES: &[(&str, Source)] = &[
    (PULLED, Source::Pulled),
    ("smollm2.f16", Source::Quantized { from: PULLED, to: "f16" }),
    ("smollm2.q4_0", Source::Quantized { from: "smollm2.f16", to: "q4_0" }),
    ("smollm2.q8_0", Source::Quantized { from: "smollm2.f16", to: "q8_0" }),
    ("smollm2.bf16", Source::Quantized { from: "smollm2.f16", to: "bf16" }),
    ("smollm2.q4_k_m", Source::Mixed { from: "smollm2.f16", to: "q4_k_m" }),
    ("qwen2.5-0.5b.q8_0", Source::Random { shape: "qwen2.5-0.5b", to: "q8_0" }),
    ("qwen2.5-0.5b.q4_0", Source::Random { shape: "qwen2.5-0.5b", to: "q4_0" }),
    ("llama-3.2-1b.q8_0", Source::Random { shape: "llama-3.2-1b", to: "q8_0" }),
    ("llama-3.2-1b.q4_0", Source::Random { shape: "llama-3.2-1b", to: "q4_0" }),
    ("llama-3.2-1b.q4_k_m", Source::Mixed { from: "llama-3.2-1b.q8_0", to: "q4_k_m" }),
    ("qwen3-moe.q4_0", Source::Random { shape: "qwen3-moe", to: "q4_0" }),
    ("rwkv7-0.1b.q8_0", Source::Random { shape: "rwkv7-0.1b", to: "q8_0" }),
];

/// Makes files under one folder, with what is needed for it.
pub struct Maker<'a> {
    pub folder: &'a Path,
    pub scripts: &'a Path,
    pub python: &'a Path,
    pub exotherm: &'a Exotherm,
}

impl Maker<'_> {
    /// The path of a file, which is made if it is not there, and what it is made of before it.
    pub fn path(&self, name: &str, peer: &mut Peer) -> Result<PathBuf> {
        let (_, source) =
            FILES.iter().find(|(n, _)| *n == name).with_context(|| format!("no file {name}"))?;
        if let Source::Pulled = source {
            return self.exotherm.pull("smollm2");
        }
        let path = self.folder.join(format!("{name}.gguf"));
        if path.exists() {
            return Ok(path);
        }
        std::fs::create_dir_all(self.folder)?;
        eprintln!("making {}", path.display());
        match source {
            Source::Pulled => unreachable!("it has been fetched above"),
            Source::Quantized { from, to } => self.exotherm.quantize(&self.path(from, peer)?, &path, to)?,
            Source::Mixed { from, to } => {
                let from = self.path(from, peer)?;
                peer.ask(&["quantize", to, &text(&from)?, &text(&path)?])?;
            }
            Source::Random { shape, to } => {
                let vocabulary = self.path(PULLED, peer)?;
                let mut make = Command::new(self.python);
                make.arg(self.scripts.join("make_model.py")).args([shape, to]).arg(vocabulary).arg(&path);
                call(&mut make)?;
            }
        }
        Ok(path)
    }
}

/// A path as a word of a line.
pub fn text(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains(['\t', '\n']));
    Ok(text.with_context(|| format!("{} cannot be told on a line", path.display()))?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_made_of_what_comes_before_it() {
        for (i, (name, source)) in FILES.iter().enumerate() {
            if let Source::Quantized { from, .. } | Source::Mixed { from, .. } = source {
                assert!(FILES[..i].iter().any(|(earlier, _)| earlier == from), "{name} is made of {from}");
            }
        }
    }
}
