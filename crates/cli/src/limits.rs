//! What this machine can do at most, measured once and kept in the store's folder.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use exotherm_kernels::cpu::{CpuBackend, Speed};
use exotherm_weights::store::Store;
use serde_json::{Value, json};

use crate::machine;

/// Entries of the file: one for each number of threads and level that was ever asked for.
const MOST_ENTRIES: usize = 64;
const FORMAT: u64 = 2;
/// Seconds that each limit is measured for when nothing else is asked for.
pub const SECONDS: f64 = 1.0;

/// The least that the median of a limit is of the best on a machine that does nothing else.
const STEADY: f64 = 0.7;

/// Per second, all threads together.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    /// Bytes of memory read.
    pub read: Speed,
    /// Products and sums of bytes.
    pub integer: Speed,
    /// Products and sums of pairs of BF16, where there are instructions for them.
    pub pair: Option<Speed>,
    /// Products and sums of f32.
    pub float: Speed,
}

impl Limits {
    /// Takes about three or four times `seconds`, and the time that filling a buffer takes.
    pub fn measure(backend: &CpuBackend, seconds: f64) -> Result<Limits> {
        let time = Duration::from_secs_f64(seconds);
        Ok(Limits {
            read: read_speed(backend, seconds)?,
            integer: backend.integer_speed(time)?,
            pair: backend.pair_speed(time)?,
            float: backend.float_speed(time)?,
        })
    }

    /// What was measured of this machine with as many threads at this level.
    pub fn cached(backend: &CpuBackend) -> Option<Limits> {
        let entries = entries(&path().ok()?);
        Limits::from_json(entries.iter().find(|entry| is_of(entry, backend))?.get("limits")?)
    }

    /// Keeps them for the next time; gives the file.
    pub fn keep(&self, backend: &CpuBackend) -> Result<PathBuf> {
        let path = path()?;
        let mut entries = entries(&path);
        entries.retain(|entry| !is_of(entry, backend));
        entries.insert(0, json!({ "machine": fingerprint(backend), "limits": self.as_json() }));
        entries.truncate(MOST_ENTRIES);
        let text = format!("{:#}\n", json!({ "format": FORMAT, "measured": entries }));
        let folder = path.parent().context("the store's folder has no name")?;
        // Written beside and moved, so that nobody finds half a file.
        let beside = folder.join(format!("limits.json.{}", std::process::id()));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&beside, text))
            .and_then(|()| fs::rename(&beside, &path))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Each limit's name and speed.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, Speed, &'static str)> {
        let all = [
            ("memory read", Some(self.read), "GB/s"),
            ("integers", Some(self.integer), "GOP/s"),
            ("pairs of BF16", self.pair, "GFLOP/s"),
            ("floats", Some(self.float), "GFLOP/s"),
        ];
        all.into_iter().filter_map(|(name, speed, unit)| Some((name, speed?, unit)))
    }

    /// Of each limit the larger: what a machine has done once it can do, and on a busy one less is seen of it.
    pub fn or_larger(self, older: Limits) -> Limits {
        let larger = |new: Speed, old: Speed| if old.best > new.best { old } else { new };
        Limits {
            read: larger(self.read, older.read),
            integer: larger(self.integer, older.integer),
            pair: match (self.pair, older.pair) {
                (Some(new), Some(old)) => Some(larger(new, old)),
                (new, old) => new.or(old),
            },
            float: larger(self.float, older.float),
        }
    }

    /// The limits that were not measured in peace: half of the time they were far from their best.
    pub fn unsteady(&self) -> Vec<&'static str> {
        let unsteady = |speed: Speed| speed.median < STEADY * speed.best;
        self.each().filter(|(_, speed, _)| unsteady(*speed)).map(|(name, ..)| name).collect()
    }

    pub fn as_json(&self) -> Value {
        let speed = |s: Speed| json!({ "best": s.best, "median": s.median });
        json!({
            "memory_read_bytes_s": speed(self.read),
            "integer_ops_s": speed(self.integer),
            "bf16_ops_s": self.pair.map(speed),
            "float_ops_s": speed(self.float),
        })
    }

    fn from_json(value: &Value) -> Option<Limits> {
        let speed = |name: &str| {
            let number = |which: &str| value.get(name)?.get(which)?.as_f64().filter(|v| *v > 0.0);
            Some(Speed { best: number("best")?, median: number("median")? })
        };
        Some(Limits {
            read: speed("memory_read_bytes_s")?,
            integer: speed("integer_ops_s")?,
            pair: match value.get("bf16_ops_s").filter(|pair| !pair.is_null()) {
                Some(_) => Some(speed("bf16_ops_s")?),
                None => None,
            },
            float: speed("float_ops_s")?,
        })
    }
}

/// How fast memory is read now: on a virtual machine that changes from minute to minute.
pub fn read_speed(backend: &CpuBackend, seconds: f64) -> Result<Speed> {
    Ok(backend.read_speed(buffer_bytes(), Duration::from_secs_f64(seconds))?)
}

/// Much more than the caches hold, as far as there is memory for it.
pub fn buffer_bytes() -> usize {
    const LEAST: u64 = 256 << 20;
    const MOST: u64 = 1 << 30;
    let cache = machine::largest_cache().unwrap_or(0);
    let wanted = cache.saturating_mul(4).clamp(LEAST, MOST);
    machine::memory().map_or(wanted, |(_, available)| wanted.min(available / 4)) as usize
}

fn path() -> Result<PathBuf> {
    Ok(Store::from_env().root()?.join("limits.json"))
}

/// A file that is not there or not as it should be holds nothing.
fn entries(path: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    match (value["format"].as_u64(), value["measured"].as_array()) {
        (Some(FORMAT), Some(entries)) => entries.clone(),
        _ => Vec::new(),
    }
}

/// What the limits depend on. Of another processor, or with another number of threads, they are others.
fn fingerprint(backend: &CpuBackend) -> Value {
    json!({
        "processor": machine::cpu_name(),
        "design": machine::cpu_design(),
        "hardware_threads": machine::logical_cores(),
        "threads": backend.threads(),
        "isa": backend.level(),
    })
}

fn is_of(entry: &Value, backend: &CpuBackend) -> bool {
    entry["machine"] == fingerprint(backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_limits_are_kept_and_unsteady_ones_told() {
        let speed = |best: f64| Speed { best, median: best * 0.9 };
        let old = Limits { read: speed(5e10), integer: speed(1e12), pair: None, float: speed(3e11) };
        let new = Limits { read: speed(3e10), integer: speed(2e12), pair: Some(speed(6e11)), ..old };
        let both = Limits { read: speed(5e10), ..new };
        assert_eq!((new.or_larger(old), old.or_larger(new), old.or_larger(old)), (both, both, old));
        assert!(old.unsteady().is_empty());
        let busy = Limits { float: Speed { best: 3e11, median: 2e11 }, ..new };
        assert_eq!(busy.unsteady(), ["floats"]);
    }

    #[test]
    fn limits_come_back_from_json() {
        let speed = |best: f64| Speed { best, median: best * 0.9 };
        let limits = Limits {
            read: speed(2.5e10),
            integer: speed(1.1e12),
            pair: Some(speed(6e11)),
            float: speed(3.0e11),
        };
        for limits in [limits, Limits { pair: None, ..limits }] {
            assert_eq!(Limits::from_json(&limits.as_json()), Some(limits));
        }
        let mut broken = limits.as_json();
        broken["float_ops_s"]["best"] = json!(0);
        assert_eq!(Limits::from_json(&broken), None);
        let mut broken = limits.as_json();
        broken["bf16_ops_s"]["best"] = json!("fast");
        assert_eq!(Limits::from_json(&broken), None);
        assert_eq!(Limits::from_json(&json!({})), None);
    }
}
