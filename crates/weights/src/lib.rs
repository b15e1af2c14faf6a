//! Checkpoints in GGUF and safetensors files: found, mapped, checked and handed out tensor by tensor; GGUF files
//! written and quantized; the store of downloaded models. Knows nothing of models or devices.
#![deny(unsafe_code)]

mod checkpoint;
mod error;
mod gguf;
mod locate;
mod mapping;
mod metadata;
mod quantize;
mod safetensors;
pub mod store;
mod table;
mod writer;

pub use checkpoint::{Checkpoint, Format};
pub use error::WeightsError;
pub use metadata::{Array, Metadata, Value};
pub use quantize::{QuantizeOptions, QuantizeSummary, is_weight_matrix, quantize_gguf, storage_type};
pub use writer::{GgufSink, GgufWriter, NewValue};
