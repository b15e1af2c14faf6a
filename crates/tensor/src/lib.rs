//! Element types, block-quantized formats and shapes. Knows nothing of files, models or devices.
#![forbid(unsafe_code)]

mod dtype;
pub mod formats;
mod tensor;

pub use dtype::DType;
pub use tensor::{Owned, Storage, Tensor, TensorError};
