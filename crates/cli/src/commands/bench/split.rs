//! What a step of a batch spends its time on.

use anyhow::{Result, ensure};
use exotherm_kernels::profile::Part;
use serde_json::{Value, json};

use crate::output;

/// The parts in the order in which they are shown; what is left of the wall clock belongs to the last.
const PARTS: [(Part, &str); 6] = [
    (Part::KvWrite, "kv_write"),
    (Part::Attention, "attention"),
    (Part::Projections, "projections"),
    (Part::FeedForward, "feed_forward"),
    (Part::Head, "head"),
    (Part::Other, "other"),
];

/// Milliseconds of a step, on average.
pub struct Split {
    parts: [f64; PARTS.len()],
    total: f64,
}

impl Split {
    /// Of ops that took so long in so many steps, and of the seconds that went by meanwhile.
    pub fn new(parts: &[Part], op_nanos: &[u64], seconds: f64, steps: u64) -> Result<Split> {
        ensure!(op_nanos.len() == parts.len(), "this backend cannot tell what its ops take");
        let per_step = 1e3 / steps.max(1) as f64;
        let total = seconds * per_step;
        let of = |part: Part| {
            let nanos = parts.iter().zip(op_nanos).filter(|(of, _)| **of == part).map(|(_, nanos)| nanos);
            nanos.sum::<u64>() as f64 * 1e-9 * per_step
        };
        let mut split = PARTS.map(|(part, _)| of(part));
        split[PARTS.len() - 1] += total - split.iter().sum::<f64>();
        Ok(Split { parts: split, total })
    }

    pub fn as_json(&self) -> Value {
        let mut json = json!({ "step_ms": self.total });
        for ((_, name), ms) in PARTS.iter().zip(self.parts) {
            json[format!("{name}_ms")] = ms.into();
        }
        json
    }
}

/// A table with a line for each test; nothing without any.
pub fn as_text(splits: &[(&str, &Split)]) -> String {
    if splits.is_empty() {
        return String::new();
    }
    let names = PARTS.iter().map(|(_, name)| name.to_uppercase().replace('_', " "));
    let mut rows =
        vec![std::iter::once("MS A STEP".into()).chain(names).chain(["TOTAL".into()]).collect::<Vec<_>>()];
    for (name, split) in splits {
        let mut row = vec![name.to_string()];
        row.extend(split.parts.iter().chain([&split.total]).map(|ms| format!("{ms:.3}")));
        rows.push(row);
    }
    format!("\n\n{}", output::table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_sum_to_the_total_and_what_no_op_took_is_other() {
        let parts = [Part::Other, Part::Projections, Part::Attention, Part::Projections, Part::Head];
        let split =
            Split::new(&parts, &[1_000_000, 2_000_000, 3_000_000, 4_000_000, 0], 0.012, 2).expect("clocks");
        let near = split.parts.iter().zip([0.0, 1.5, 3.0, 0.0, 0.0, 1.5]);
        assert!(near.into_iter().all(|(have, want)| (have - want).abs() < 1e-9), "{:?}", split.parts);
        assert_eq!(split.total, 6.0);
        let json = split.as_json();
        assert_eq!((json["step_ms"].as_f64(), json["projections_ms"].as_f64()), (Some(6.0), Some(3.0)));
        assert!(as_text(&[("tg8", &split)]).contains("FEED FORWARD"));
        assert!(Split::new(&parts, &[], 1.0, 1).is_err());
    }
}
