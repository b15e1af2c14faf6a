//! The families, one line each.

use exotherm_weights::{Checkpoint, Format};

use crate::loader::{LoadOptions, Loader};
use crate::{Model, ModelError, gemma3, gpt2, llama, qwen2, qwen3, qwen3moe, rwkv7};

pub struct Family {
    /// Also the architecture's name in GGUF files.
    pub name: &'static str,
    /// `model_type` in config.json.
    model_types: &'static [&'static str],
    record: fn(Loader) -> Result<Model, ModelError>,
}

pub const FAMILIES: &[Family] = &[
    Family { name: "llama", model_types: &["llama"], record: llama::record },
    Family { name: "qwen2", model_types: &["qwen2"], record: qwen2::record },
    Family { name: "qwen3", model_types: &["qwen3"], record: qwen3::record },
    Family { name: "qwen3moe", model_types: &["qwen3_moe"], record: qwen3moe::record },
    Family { name: "gpt2", model_types: &["gpt2"], record: gpt2::record },
    Family { name: "gemma3", model_types: &["gemma3_text", "gemma3"], record: gemma3::record },
    Family { name: "rwkv7", model_types: &["rwkv7"], record: rwkv7::record },
];

/// Which family a checkpoint is of.
pub fn family_of(checkpoint: &Checkpoint) -> Result<&'static Family, ModelError> {
    let found = match checkpoint.format() {
        Format::Gguf => checkpoint.metadata().str("general.architecture"),
        Format::Safetensors if rwkv7::is_rwkv7(checkpoint) => Some("rwkv7"),
        Format::Safetensors => checkpoint.config().and_then(|c| c.get("model_type")).and_then(|v| v.as_str()),
    };
    let found = found.ok_or_else(|| ModelError::NoFamily(checkpoint.path().display().to_string()))?;
    let is_named = |family: &&Family| match checkpoint.format() {
        Format::Gguf => family.name == found,
        Format::Safetensors => family.model_types.contains(&found),
    };
    FAMILIES.iter().find(is_named).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().map(|f| f.name).collect();
        ModelError::UnknownFamily { found: found.to_string(), known: known.join(", ") }
    })
}

/// Records the model of a checkpoint. Every tensor in it is used or is one that its family may leave.
pub fn load(checkpoint: &mut Checkpoint, options: &LoadOptions) -> Result<Model, ModelError> {
    let family = family_of(checkpoint)?;
    if checkpoint.is_vocab_only() {
        return Err(ModelError::NoWeights(checkpoint.path().display().to_string()));
    }
    (family.record)(Loader::new(checkpoint, options))
}
