//! Sequences, scheduling and state on top of a program. Knows nothing of text, tokenizers or HTTP.
//!
//! Only the scheduler moves sequences. One step is plan → run → commit; see [`Engine::step`].
#![forbid(unsafe_code)]

mod blocks;
mod config;
mod embedding;
mod engine;
mod error;
pub mod evaluate;
pub mod handle;
mod lru;
pub mod perplexity;
mod prefix;
mod request;
mod restart;
mod scheduler;
pub mod selfcheck;
mod sequence;
#[cfg(test)]
mod simulator;
mod snapshots;
pub mod stats;

pub use blocks::Books;
pub use config::{EngineConfig, MemoryPlan};
pub use embedding::Embedding;
pub use engine::Engine;
pub use error::EngineError;
pub use evaluate::Evaluator;
pub use exotherm_kernels::sampling::{self, Sampling, SamplingError, TokenLogprob};
pub use handle::EngineHandle;
pub use request::{Event, FinishReason, Request, RequestId, RequestStats, TokenLogprobs};
pub use restart::Rebuild;
pub use scheduler::SchedulerStats;
