//! Where events go that a person reads.

use std::fmt::Write as _;
use std::io::Write;

use crate::attention::AttentionTimes;
use crate::filter::traces;

/// The name under which `RUST_LOG` asks for the times of attention.
const ATTENTION: &str = "exotherm::attn";

/// Writes a line for each event.
pub struct Lines<W> {
    out: W,
    /// What is written at once.
    text: String,
}

impl<W: Write> Lines<W> {
    pub fn new(out: W) -> Lines<W> {
        Lines { out, text: String::new() }
    }

    /// One step's layers. That nobody may be listening is no reason to fail.
    pub fn attention(&mut self, layers: impl Iterator<Item = AttentionTimes>) {
        self.text.clear();
        for times in layers {
            // Writing to a string does not fail.
            let _ = writeln!(self.text, "{times}");
        }
        let _ = self.out.write_all(self.text.as_bytes());
    }
}

/// Whether the environment's `RUST_LOG` asks for the times of attention.
pub fn wants_attention() -> bool {
    std::env::var("RUST_LOG").is_ok_and(|filter| traces(&filter, ATTENTION))
}

/// A line on stderr. That nobody may be listening is no reason to fail.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let mut out = Vec::new();
        let mut lines = Lines::new(&mut out);
        lines.attention((0..2).map(|layer| AttentionTimes {
            layer,
            total: 1_999,
            ..AttentionTimes::default()
        }));
        lines.attention(std::iter::empty());
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.starts_with("[attn] layer=0 QKV=0.000ms ")
                && text.ends_with(" other=0.001ms total=0.001ms\n")
        );
    }
}
