//! The times of one layer's attention in one step.

use std::fmt;

/// Nanoseconds. What the parts leave of `total` is neither of them: writing to the cache, and lanes that wait.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AttentionTimes {
    pub layer: usize,
    /// The projection that makes queries, keys and values, with its norm.
    pub qkv: u64,
    pub qk_norm: u64,
    pub rope: u64,
    pub scores: u64,
    pub softmax: u64,
    pub values: u64,
    /// The projection of what attention makes, with the residual.
    pub out: u64,
    pub total: u64,
}

/// `[attn] layer=0 QKV=0.358ms …`. Every time is cut off after the microseconds and `other` is the difference of what
/// is printed, so the printed parts sum to the printed total.
impl fmt::Display for AttentionTimes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let parts = [
            ("QKV", self.qkv),
            ("QKnorm", self.qk_norm),
            ("RoPE", self.rope),
            ("QK^T", self.scores),
            ("softmax", self.softmax),
            ("A*V", self.values),
            ("out", self.out),
        ];
        let micros = |nanos: u64| nanos / 1000;
        let part = |f: &mut fmt::Formatter, name: &str, micros: u64| {
            write!(f, " {name}={}.{:03}ms", micros / 1000, micros % 1000)
        };
        let total = micros(self.total);
        let mut other = total;
        write!(f, "[attn] layer={}", self.layer)?;
        for (name, nanos) in parts {
            part(f, name, micros(nanos))?;
            other = other.saturating_sub(micros(nanos));
        }
        part(f, "other", other)?;
        part(f, "total", total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_as_it_was_asked_for() {
        let times = AttentionTimes {
            layer: 0,
            qkv: 358_000,
            qk_norm: 0,
            rope: 15_000,
            scores: 79_000,
            softmax: 7_000,
            values: 12_000,
            out: 142_000,
            total: 617_000,
        };
        assert_eq!(
            times.to_string(),
            "[attn] layer=0 QKV=0.358ms QKnorm=0.000ms RoPE=0.015ms QK^T=0.079ms softmax=0.007ms A*V=0.012ms \
             out=0.142ms other=0.004ms total=0.617ms"
        );
    }

    #[test]
    fn printed_parts_sum_to_the_printed_total() {
        for seed in 1..500u64 {
            let part = |i: u64| (seed * 7919 + i * 104_729) % 2_345_678;
            let parts: Vec<u64> = (0..7).map(part).collect();
            let times = AttentionTimes {
                layer: seed as usize,
                qkv: parts[0],
                qk_norm: parts[1],
                rope: parts[2],
                scores: parts[3],
                softmax: parts[4],
                values: parts[5],
                out: parts[6],
                total: parts.iter().sum::<u64>() + seed % 3 * 400,
            };
            let line = times.to_string();
            let printed: Vec<u64> = line
                .split("ms")
                .filter_map(|part| part.rsplit_once('=')?.1.replace('.', "").parse().ok())
                .collect();
            assert_eq!(printed.len(), 9, "{line}");
            assert_eq!(printed[..8].iter().sum::<u64>(), printed[8], "{line}");
        }
    }
}
