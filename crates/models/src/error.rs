//! What can be wrong with a model beyond its files.

use exotherm_tensor::{DType, TensorError};
use exotherm_weights::WeightsError;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error("the model family {found:?} is not known; there are: {known}")]
    UnknownFamily { found: String, known: String },
    #[error("{0} has no weights; it can be used by `exotherm tokenize` only")]
    NoWeights(String),
    #[error(
        "nothing says of which family {0} is: a GGUF file names its architecture, a folder of safetensors \
         needs a config.json with a model_type (RWKV-7 alone is known by its tensors)"
    )]
    NoFamily(String),
    #[error("{key} is missing from {place}")]
    MissingKey { key: String, place: &'static str },
    #[error("{key} is {found}, but {expected}")]
    BadValue { key: String, found: String, expected: String },
    #[error("{what} is not supported: {why}")]
    Unsupported { what: String, why: String },
    #[error("tensor {name} is {dtype}; here a float type is needed")]
    NotFloat { name: String, dtype: DType },
    #[error("tensor {name} holds a value that is not finite")]
    NotFinite { name: String },
}

impl ModelError {
    pub(crate) fn bad(key: &str, found: impl ToString, expected: impl ToString) -> ModelError {
        ModelError::BadValue { key: key.into(), found: found.to_string(), expected: expected.to_string() }
    }
}
