//! Model families: each reads its configuration, names its tensors and records itself into a program.
//! Knows nothing of devices, caches or requests.

mod config;
mod decoder;
mod error;
mod gemma3;
mod gpt2;
mod llama;
mod loader;
mod qwen2;
mod qwen3;
mod qwen3moe;
mod registry;
mod rope;
mod rwkv7;

pub use error::ModelError;
pub use loader::LoadOptions;
pub use registry::{FAMILIES, Family, family_of, load};

use exotherm_kernels::Program;

/// A model ready to be compiled by a backend.
pub struct Model {
    pub program: Program,
    pub info: ModelInfo,
}

/// What a person wants to know about a model. Sizes that a family does not have are zero.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    pub family: &'static str,
    /// `general.name` of a GGUF file, if any.
    pub name: Option<String>,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub hidden: usize,
    pub experts: usize,
    pub experts_used: usize,
    pub vocab: usize,
    /// Positions that the model was trained for; 0 where there is no such bound (RWKV).
    pub context: usize,
    /// Weights in all, counted as elements.
    pub parameters: u64,
    /// Elements per storage type, in the order in which they were first met.
    pub types: Vec<(exotherm_tensor::DType, u64)>,
}
