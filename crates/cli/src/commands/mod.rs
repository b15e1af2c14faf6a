//! One file per command: its arguments, its help and what it does.

pub mod bench;
pub mod chat;
pub mod completions;
pub mod devices;
pub mod inspect;
pub mod logits;
pub mod models;
pub mod perplexity;
pub mod profile;
pub mod pull;
pub mod quantize;
pub mod run;
pub mod selfcheck;
pub mod serve;
pub mod tokenize;
