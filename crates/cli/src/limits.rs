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
pub struct Limit {
    pub best: f64,
    pub median: f64,
    /// Whether others may have had a part of the machine whenever it was measured, so that it may be higher yet.
    pub busy: bool,
}

impl Limit {
    fn new(Speed { best, median }: Speed, is_machine_busy: bool) -> Limit {
        Limit { best, median, busy: is_machine_busy || median < STEADY * best }
    }

    /// The larger: what a machine has done once it can do, and on a busy one less is seen of it. A time in peace that came
    /// near it takes the doubt away.
    fn or_larger(self, older: Limit) -> Limit {
        let (larger, other) = if older.best > self.best { (older, self) } else { (self, older) };
        let is_confirmed = !other.busy && other.best >= STEADY * larger.best;
        Limit { busy: larger.busy && !is_confirmed, ..larger }
    }

    fn as_json(self) -> Value {
        json!({ "best": self.best, "median": self.median, "busy": self.busy })
    }

    fn from_json(value: &Value) -> Option<Limit> {
        let number = |which: &str| value.get(which)?.as_f64().filter(|v| *v > 0.0);
        let limit = Limit::new(Speed { best: number("best")?, median: number("median")? }, false);
        // Those of earlier versions do not tell.
        Some(Limit { busy: value["busy"].as_bool().unwrap_or(limit.busy), ..limit })
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    /// Bytes of memory read.
    pub read: Limit,
    /// Products and sums of bytes.
    pub integer: Limit,
    /// Products and sums of pairs of BF16, where there are instructions for them.
    pub pair: Option<Limit>,
    /// Products and sums of f32.
    pub float: Limit,
}

impl Limits {
    /// Takes about three or four times `seconds`, and the time that filling a buffer takes.
    pub fn measure(backend: &CpuBackend, seconds: f64, is_machine_busy: bool) -> Result<Limits> {
        let time = Duration::from_secs_f64(seconds);
        let limit = |speed| Limit::new(speed, is_machine_busy);
        Ok(Limits {
            read: limit(read_speed(backend, seconds)?),
            integer: limit(backend.integer_speed(time)?),
            pair: backend.pair_speed(time)?.map(limit),
            float: limit(backend.float_speed(time)?),
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

    /// Each limit's name and unit.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, Limit, &'static str)> {
        let all = [
            ("memory read", Some(self.read), "GB/s"),
            ("integers", Some(self.integer), "GOP/s"),
            ("pairs of BF16", self.pair, "GFLOP/s"),
            ("floats", Some(self.float), "GFLOP/s"),
        ];
        all.into_iter().filter_map(|(name, speed, unit)| Some((name, speed?, unit)))
    }

    /// Of each limit the larger.
    pub fn or_larger(self, older: Limits) -> Limits {
        Limits {
            read: self.read.or_larger(older.read),
            integer: self.integer.or_larger(older.integer),
            pair: match (self.pair, older.pair) {
                (Some(new), Some(old)) => Some(new.or_larger(old)),
                (new, old) => new.or(old),
            },
            float: self.float.or_larger(older.float),
        }
    }

    /// The limits that were far from their best half of the time.
    pub fn unsteady(&self) -> Vec<&'static str> {
        self.each().filter(|(_, l, _)| l.median < STEADY * l.best).map(|(name, ..)| name).collect()
    }

    pub fn as_json(&self) -> Value {
        json!({
            "memory_read_bytes_s": self.read.as_json(),
            "integer_ops_s": self.integer.as_json(),
            "bf16_ops_s": self.pair.map(Limit::as_json),
            "float_ops_s": self.float.as_json(),
        })
    }

    fn from_json(value: &Value) -> Option<Limits> {
        let limit = |name: &str| Limit::from_json(value.get(name)?);
        Some(Limits {
            read: limit("memory_read_bytes_s")?,
            integer: limit("integer_ops_s")?,
            pair: match value.get("bf16_ops_s").filter(|pair| !pair.is_null()) {
                Some(_) => Some(limit("bf16_ops_s")?),
                None => None,
            },
            float: limit("float_ops_s")?,
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
        let speed = |best: f64| Limit::new(Speed { best, median: best * 0.9 }, false);
        let old = Limits { read: speed(5e10), integer: speed(1e12), pair: None, float: speed(3e11) };
        let new = Limits { read: speed(3e10), integer: speed(2e12), pair: Some(speed(6e11)), ..old };
        let both = Limits { read: speed(5e10), ..new };
        assert_eq!((new.or_larger(old), old.or_larger(new), old.or_larger(old)), (both, both, old));
        assert!(old.unsteady().is_empty());
        let busy = Limits { float: Limit::new(Speed { best: 3e11, median: 2e11 }, false), ..new };
        assert_eq!(busy.unsteady(), ["floats"]);
    }

    #[test]
    fn what_was_measured_on_a_busy_machine_is_doubtful_until_it_is_measured_in_peace() {
        let limit = |best, busy| Limit::new(Speed { best, median: best * 0.9 }, busy);
        let (busy, later, peace) = (limit(2e11, true), limit(3e11, true), limit(1e11, false));
        assert_eq!(later.or_larger(busy), later);
        assert_eq!(peace.or_larger(later), limit(3e11, true), "a third of it is no measure of it");
        assert_eq!(later.or_larger(limit(2.9e11, false)), limit(3e11, false));
        assert_eq!(limit(2.9e11, true).or_larger(limit(3e11, false)), limit(3e11, false));
        assert!(Limit::new(Speed { best: 3e11, median: 2e11 }, false).busy, "others came and went");
    }

    #[test]
    fn limits_come_back_from_json() {
        let speed = |best: f64| Limit::new(Speed { best, median: best * 0.9 }, best > 1e12);
        let limits = Limits {
            read: speed(2.5e10),
            integer: speed(1.1e12),
            pair: Some(speed(6e11)),
            float: speed(3.0e11),
        };
        for limits in [limits, Limits { pair: None, ..limits }] {
            assert_eq!(Limits::from_json(&limits.as_json()), Some(limits));
        }
        // An earlier version kept no more than the speeds.
        let mut older = limits.as_json();
        older["integer_ops_s"] = json!({ "best": 1e12, "median": 9e11 });
        older["float_ops_s"] = json!({ "best": 1e12, "median": 5e11 });
        let older = Limits::from_json(&older).expect("they are read");
        assert_eq!((older.integer.busy, older.float.busy), (false, true));
        let mut broken = limits.as_json();
        broken["float_ops_s"]["best"] = json!(0);
        assert_eq!(Limits::from_json(&broken), None);
        let mut broken = limits.as_json();
        broken["bf16_ops_s"]["best"] = json!("fast");
        assert_eq!(Limits::from_json(&broken), None);
        assert_eq!(Limits::from_json(&json!({})), None);
    }
}
