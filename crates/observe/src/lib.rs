//! What a run took: its memory and its times, and the lines in which they are told. Knows nothing of who made the
//! numbers or who reads them.
#![forbid(unsafe_code)]

mod attention;
mod filter;
mod memory;
#[cfg(feature = "otlp")]
pub mod otlp;
mod sink;
mod spans;
mod summary;

pub use attention::AttentionTimes;
pub use filter::{not_understood, shows, traces};
pub use memory::{ResidentBytes, resident_bytes};
pub use sink::{Lines, line, wants_attention};
#[cfg(feature = "otlp")]
pub use spans::subscribe_and_send;
pub use spans::{PHASES, REQUESTS, subscribe};
pub use summary::RunSummary;
