//! Programs of fused operations and the backends that run them. Knows nothing of sequences, requests or text.

// Tests of this crate's insides share the outside's ways to a GPU.
#[cfg(test)]
extern crate self as exotherm_kernels;

pub mod backend;
pub mod batch;
pub mod conformance;
pub mod cpu;
pub mod gpu;
mod layout;
pub mod ops;
mod plan;
pub mod profile;
pub mod program;
pub mod reference;
pub mod rounding;
pub mod sampling;
pub mod wrapped;

pub use backend::{Backend, BackendError, Executor, KvType, Limits, MemoryUse, Place};
pub use batch::{BLOCK, Batch, Span};
pub use ops::{Activation, Norm, NormKind, Op};
pub use program::{
    Buf, KvId, KvLayer, MatId, Matrix, Program, ProgramBuilder, RecId, Rows, StateSpec, VecId,
};
pub use rounding::Activations;
pub use sampling::{Logprobs, SampleRow, Sampled, Sampling, SamplingError, TokenLogprob};
pub use wrapped::{Wrapped, Wrapper};
