//! What a profile says, as a table and as JSON.

use std::time::Duration;

use exotherm_kernels::Program;
use exotherm_kernels::cpu::Speed;
use exotherm_kernels::profile::{DeviceWork, Work, WorkCounter};
use exotherm_models::ModelInfo;
use serde_json::{Value, json};

use super::phase::Phase;
use super::{Args, Machine};
use crate::limits::{Limit, Limits};

/// Below this share of both limits it is not they that hold an op up.
const NEAR: f64 = 1.0 / 3.0;
/// Bytes that come so much faster than memory is read do not come from memory.
const FASTER: f64 = 1.05;

const HEAD: [&str; 10] =
    ["OP", "CALLS", "TIME ms", "SHARE", "BYTES", "GB/s", "OPS", "GOP/s", "LIMIT", "BINDS"];

pub struct Report<'a> {
    pub args: &'a Args,
    pub info: &'a ModelInfo,
    pub program: &'a Program,
    pub machine: Option<Machine>,
    pub phases: Vec<Phase>,
    pub work: WorkCounter,
    pub weight_bytes: usize,
}

/// One op, or all ops of a kind, in a phase.
struct Row {
    op: &'static str,
    index: Option<usize>,
    calls: usize,
    nanos: u64,
    work: Work,
}

/// Seconds that an op's work takes at least.
#[derive(Clone, Copy)]
struct Floor {
    memory: f64,
    integer: f64,
    pair: f64,
    float: f64,
}

impl Floor {
    fn of(work: &Work, machine: &Machine) -> Floor {
        Floor {
            memory: work.bytes() as f64 / machine.read().best,
            integer: work.integer_ops as f64 / machine.limits.integer.best,
            // Where there are no instructions for pairs nothing is made of them.
            pair: machine.limits.pair.map_or(0.0, |pair| work.pair_ops as f64 / pair.best),
            float: work.float_ops as f64 / machine.limits.float.best,
        }
    }

    fn seconds(self) -> f64 {
        self.memory.max(self.units())
    }

    fn units(self) -> f64 {
        self.integer + self.pair + self.float
    }

    /// What keeps an op that takes so long from being faster.
    fn binds(self, seconds: f64) -> &'static str {
        let units = self.units();
        if self.memory > FASTER * seconds && self.memory > units {
            "caches"
        } else if self.seconds() < NEAR * seconds {
            "cache/latency"
        } else if self.memory >= units {
            "memory read"
        } else if self.integer >= self.pair.max(self.float) {
            "integer units"
        } else if self.pair >= self.float {
            "BF16 units"
        } else {
            "float units"
        }
    }
}

impl Machine {
    /// The faster of the moments before and after: what the machine could do while the model ran.
    fn read(&self) -> Speed {
        if self.before.best > self.after.best { self.before } else { self.after }
    }
}

impl Report<'_> {
    /// Every op of the program.
    fn ops(&self, phase: &Phase) -> Vec<Row> {
        let row = |(i, op): (usize, &exotherm_kernels::Op)| {
            let mut work = Work::default();
            phase.batches.iter().for_each(|batch| work += self.work.work(i, batch));
            Row { op: op.name(), index: Some(i), calls: phase.batches.len(), nanos: phase.op_nanos[i], work }
        };
        self.program.ops().iter().enumerate().map(row).collect()
    }

    /// Every kind of op, in the order in which they first come.
    fn kinds(&self, phase: &Phase) -> Vec<Row> {
        let mut kinds: Vec<Row> = Vec::new();
        for row in self.ops(phase) {
            match kinds.iter_mut().find(|kind| kind.op == row.op) {
                Some(kind) => {
                    kind.calls += row.calls;
                    kind.nanos += row.nanos;
                    kind.work += row.work;
                }
                None => kinds.push(Row { index: None, ..row }),
            }
        }
        kinds
    }

    pub fn as_text(&self) -> String {
        let args = self.args;
        let mut text = format!("{}, {}", args.model, args.compute.backend.name());
        if let Some(machine) = &self.machine {
            text += &format!(" {}", machine.backend.level());
        }
        text += &format!(
            ", {} threads, kv {}, batch {}\n",
            args.compute.threads(),
            args.kv_type.name(),
            args.batch
        );
        if let Some(machine) = &self.machine {
            text += &machine_text(machine, self.weight_bytes);
        }
        for phase in &self.phases {
            text += &self.phase_text(phase);
        }
        text.trim_end().to_string()
    }

    fn phase_text(&self, phase: &Phase) -> String {
        let seconds = phase.nanos as f64 / 1e9;
        let mut cells = vec![HEAD.map(String::from).to_vec()];
        if self.machine.is_none() {
            cells[0].truncate(HEAD.len() - 2);
        }
        let rows = if self.args.per_op { self.ops(phase) } else { self.kinds(phase) };
        cells.extend(rows.iter().map(|row| self.cells(row, phase)));
        let time = |name: &str, nanos: f64| {
            let share = format!("{:.1}%", 100.0 * nanos / phase.nanos as f64);
            vec![name.to_string(), String::new(), format!("{:.3}", nanos / 1e6), share]
        };
        cells.push(time("other", phase.other_nanos() as f64));
        let total = rows.iter().fold(Work::default(), |mut total, row| {
            total += row.work;
            total
        });
        let mut last = time("total", phase.nanos as f64);
        last.extend(self.rates(&total, phase.nanos));
        // The share of the time that all ops would take if each were at its limit.
        last.push(
            self.floor(&rows).map_or(String::new(), |floor| format!("{:.0}%", 100.0 * floor / seconds)),
        );
        cells.push(last);
        let device = device_text(&phase.device, phase.batches.len());
        format!(
            "\n{}: {} tokens in {} steps, {seconds:.3} s, {:.1} tok/s\n{}\n{device}",
            phase.name,
            phase.tokens,
            phase.batches.len(),
            phase.tokens as f64 / seconds,
            aligned(&cells),
        )
    }

    /// What is to be said where shares rest on limits that were measured while the machine was busy. The speed of memory is
    /// that of now.
    pub fn doubt(&self) -> Option<String> {
        let machine = self.machine.as_ref()?;
        let mut all = Work::default();
        self.phases.iter().flat_map(|phase| self.ops(phase)).for_each(|row| all += row.work);
        let Limits { integer, pair, float, .. } = machine.limits;
        let units = [
            ("integers", Some(integer), all.integer_ops),
            ("pairs of BF16", pair, all.pair_ops),
            ("floats", Some(float), all.float_ops),
        ];
        let busy = |(_, limit, ops): &(_, Option<Limit>, u64)| *ops > 0 && limit.is_some_and(|l| l.busy);
        let names: Vec<&str> = units.into_iter().filter(busy).map(|(name, ..)| name).collect();
        let (threads, level) = (machine.backend.threads(), machine.backend.level());
        (!names.is_empty()).then(|| {
            format!(
                "note: {}: measured on a busy machine; the limit may be higher and the shares lower (`exotherm devices \
                 --measure --forget --threads {threads} --isa {level}` on an idle one begins anew)",
                names.join(", ")
            )
        })
    }

    /// Seconds that the rows take at least.
    fn floor(&self, rows: &[Row]) -> Option<f64> {
        let machine = self.machine.as_ref()?;
        Some(rows.iter().map(|row| Floor::of(&row.work, machine).seconds()).sum())
    }

    fn cells(&self, row: &Row, phase: &Phase) -> Vec<String> {
        let name = row.index.map_or(row.op.to_string(), |i| format!("{i:>3} {}", row.op));
        let share = format!("{:.1}%", 100.0 * row.nanos as f64 / phase.nanos as f64);
        let mut cells = vec![name, row.calls.to_string(), format!("{:.3}", row.nanos as f64 / 1e6), share];
        cells.extend(self.rates(&row.work, row.nanos));
        if let Some(machine) = &self.machine {
            let (floor, seconds) = (Floor::of(&row.work, machine), row.nanos.max(1) as f64 / 1e9);
            cells.push(format!("{:.0}%", 100.0 * floor.seconds() / seconds));
            cells.push(floor.binds(seconds).to_string());
        }
        cells
    }

    fn rates(&self, work: &Work, nanos: u64) -> [String; 4] {
        // Something for each nanosecond is a thousand million a second.
        let rate = |amount: u64| format!("{:.1}", amount as f64 / nanos.max(1) as f64);
        [amount(work.bytes()), rate(work.bytes()), amount(work.ops()), rate(work.ops())]
    }

    pub fn as_json(&self) -> Value {
        let args = self.args;
        let speed = |s: Speed| json!({ "best": s.best, "median": s.median });
        let memory = self.machine.as_ref().map(|m| {
            json!({
                "before": speed(m.before),
                "after": speed(m.after),
                "as_large_as_the_weights": m.weights.map(speed),
            })
        });
        json!({
            "model": args.model,
            "family": self.info.family,
            "backend": args.compute.backend.name(),
            "isa": self.machine.as_ref().map(|m| m.backend.level()),
            "threads": args.compute.threads(),
            "kv_type": args.kv_type.name(),
            "quantize": args.quantize.quantize.map(|to| to.name()),
            "batch": args.batch,
            "weight_bytes": self.weight_bytes,
            "limits": self.machine.as_ref().map(|m| m.limits.as_json()),
            "memory_read_bytes_s": memory,
            "phases": self.phases.iter().map(|phase| self.phase_json(phase)).collect::<Vec<_>>(),
        })
    }

    fn phase_json(&self, phase: &Phase) -> Value {
        let seconds = phase.nanos as f64 / 1e9;
        let (kinds, other) = (self.kinds(phase), phase.other_nanos() as f64 / 1e9);
        let rows = |rows: &[Row]| rows.iter().map(|row| self.row_json(row, phase)).collect::<Vec<_>>();
        json!({
            "phase": phase.name,
            "tokens": phase.tokens,
            "steps": phase.batches.len(),
            "tok_s": phase.tokens as f64 / seconds,
            "ops": rows(&kinds),
            "other": { "time_s": other, "share": other / seconds },
            "total": { "time_s": seconds, "limit": self.floor(&kinds).map(|floor| floor / seconds) },
            "device": device_json(&phase.device),
            "program": self.args.per_op.then(|| rows(&self.ops(phase))),
        })
    }

    fn row_json(&self, row: &Row, phase: &Phase) -> Value {
        let (seconds, work) = (row.nanos.max(1) as f64 / 1e9, &row.work);
        let floor = self.machine.as_ref().map(|machine| Floor::of(work, machine));
        json!({
            "op": row.op,
            "index": row.index,
            "calls": row.calls,
            "time_s": row.nanos as f64 / 1e9,
            "share": row.nanos as f64 / phase.nanos as f64,
            "bytes": work.bytes(),
            "weight_bytes": work.weight_bytes,
            "state_bytes": work.state_bytes,
            "activation_bytes": work.activation_bytes,
            "bytes_s": work.bytes() as f64 / seconds,
            "integer_ops": work.integer_ops,
            "bf16_ops": work.pair_ops,
            "float_ops": work.float_ops,
            "ops_s": work.ops() as f64 / seconds,
            "limit": floor.map(|floor| floor.seconds() / seconds),
            "binds": floor.map(|floor| floor.binds(seconds)),
        })
    }
}

/// What the host was at while a device computed.
fn device_text(device: &DeviceWork, steps: usize) -> String {
    if device.submissions == 0 {
        return String::new();
    }
    let of_step = |n: u64| n as f64 / steps.max(1) as f64;
    let ms = |time: Duration| 1e3 * time.as_secs_f64();
    format!(
        "host: encoding {:.3} ms, and {:.3} ms while the device was at work; submitting {:.3} ms, waiting {:.3} ms\n\
         a step: {:.1} submissions, {:.1} passes, {:.1} dispatches, {:.1} waits, {}B back\n",
        ms(device.encoding),
        ms(device.foreseeing),
        ms(device.submitting),
        ms(device.waiting),
        of_step(device.submissions),
        of_step(device.passes),
        of_step(device.dispatches),
        of_step(device.waits),
        amount(of_step(device.read_bytes) as u64),
    )
}

fn device_json(device: &DeviceWork) -> Option<Value> {
    (device.submissions > 0).then(|| {
        json!({
            "submissions": device.submissions,
            "passes": device.passes,
            "dispatches": device.dispatches,
            "waits": device.waits,
            "read_bytes": device.read_bytes,
            "encoding_s": device.encoding.as_secs_f64(),
            "encoding_ahead_s": device.foreseeing.as_secs_f64(),
            "submitting_s": device.submitting.as_secs_f64(),
            "waiting_s": device.waiting.as_secs_f64(),
        })
    })
}

fn machine_text(machine: &Machine, weight_bytes: usize) -> String {
    let giga = |speed: f64| format!("{:.1}", speed / 1e9);
    let read = |s: Speed| format!("{} ({})", giga(s.best), giga(s.median));
    let mut text = format!(
        "memory read, best (median): {} GB/s before, {} GB/s after\n",
        read(machine.before),
        read(machine.after)
    );
    if let Some(weights) = machine.weights {
        let size = amount(weight_bytes as u64);
        text += &format!("a buffer as large as the weights ({size}B) is read at {} GB/s\n", read(weights));
    }
    text += &format!(
        "limits: memory {} GB/s, integers {} GOP/s, {}floats {} GFLOP/s\n",
        giga(machine.read().best),
        giga(machine.limits.integer.best),
        machine
            .limits
            .pair
            .map_or(String::new(), |pair| format!("pairs of BF16 {} GFLOP/s, ", giga(pair.best))),
        giga(machine.limits.float.best),
    );
    text
}

/// Three digits and a prefix of a thousand.
fn amount(n: u64) -> String {
    let mut value = n as f64;
    for prefix in ["", "k", "M", "G", "T"] {
        // What would be printed as 1000 has the next prefix.
        if value < 999.5 {
            let digits = if prefix.is_empty() || value >= 99.95 { 0 } else { 1 };
            return format!("{value:.digits$} {prefix}").trim_end().to_string();
        }
        value /= 1000.0;
    }
    format!("{value:.0} P")
}

/// The columns of the table: the first and BINDS are words and begin at the left, the others are numbers and end at the
/// right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, c: usize| row.get(c).cloned().unwrap_or_default();
    let width = |c: usize| rows.iter().map(|row| cell(row, c).chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let padded = (0..columns).map(|c| {
            let (text, width) = (cell(row, c), widths[c]);
            if c == 0 || c + 1 == HEAD.len() { format!("{text:<width$}") } else { format!("{text:>width$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        let shown: Vec<String> =
            [0, 999, 1000, 98_362_432, 999_949_999, 1_500_000_000_000].map(amount).to_vec();
        assert_eq!(shown, ["0", "999", "1.0 k", "98.4 M", "1.0 G", "1.5 T"]);
    }

    #[test]
    fn the_limit_that_binds_is_named() {
        let floor = |memory, integer, float| Floor { memory, integer, pair: 0.0, float };
        assert_eq!(floor(0.8, 0.1, 0.0).binds(1.0), "memory read");
        assert_eq!(floor(1.2, 0.1, 0.0).binds(1.0), "caches");
        assert_eq!(floor(0.1, 0.5, 0.1).binds(1.0), "integer units");
        assert_eq!(floor(0.1, 0.2, 0.3).binds(1.0), "float units");
        assert_eq!(Floor { pair: 0.4, ..floor(0.1, 0.2, 0.3) }.binds(1.0), "BF16 units");
        assert_eq!(Floor { pair: 0.25, ..floor(0.1, 0.25, 0.5) }.seconds(), 1.0);
        assert_eq!(floor(0.2, 0.1, 0.2).binds(1.0), "cache/latency");
        assert_eq!(floor(0.2, 0.1, 0.3).seconds(), 0.4);
    }

    #[test]
    fn numbers_end_at_the_right() {
        let rows = [["OP", "MS"], ["attention", "7"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(aligned(&rows), "OP         MS\nattention   7");
        let mut whole = [HEAD.map(String::from).to_vec(), vec![String::new(); 9]];
        whole[1].push("x".into());
        let table = aligned(&whole);
        assert_eq!(table.lines().nth(1).and_then(|l| l.find('x')), table.find("BINDS"));
    }
}
