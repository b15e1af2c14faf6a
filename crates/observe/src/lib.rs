//! What a run took: its memory and its times. Knows nothing of who made the numbers or who reads them.
#![forbid(unsafe_code)]

mod memory;
mod summary;

pub use memory::{ResidentBytes, resident_bytes};
pub use summary::RunSummary;
