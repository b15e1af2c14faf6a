//! How fast this machine reads memory and multiplies, measured when a bench begins.

use std::thread;
use std::time::Duration;

use exotherm_kernels::cpu::CpuBackend;

use super::{Units, Work};

/// More than most last caches hold.
const BYTES: usize = 512 << 20;
/// For each limit.
const TIME: Duration = Duration::from_millis(300);

pub struct Machine {
    pub threads: usize,
    /// Bytes per second that all threads read together.
    read: f64,
    /// Multiplications and additions per second that all threads make together.
    float: f64,
    integer: f64,
    /// Of pairs of BF16, where there are instructions for them.
    pair: Option<f64>,
}

impl Machine {
    pub fn measure() -> Machine {
        let threads = thread::available_parallelism().map_or(1, |n| n.get());
        let backend = CpuBackend::new(threads);
        let read = backend.read_speed(BYTES, TIME).expect("there is memory for it").best;
        let float = backend.float_speed(TIME).expect("threads can be had").best;
        let integer = backend.integer_speed(TIME).expect("threads can be had").best;
        let pair = backend.pair_speed(TIME).expect("threads can be had").map(|speed| speed.best);
        println!(
            "{threads} threads; memory is read at {:.1} GB/s, f32 computed at {:.0} GFLOP/s, bytes at {:.0} GOP/s",
            read / 1e9,
            float / 1e9,
            integer / 1e9
        );
        Machine { threads, read, float, integer, pair }
    }

    /// What a time for that work is of the limits.
    pub fn shares(&self, work: Work, seconds: f64) -> String {
        let part = |speed: f64, limit: f64| 100.0 * speed / limit;
        let (bytes, operations) = (work.bytes / seconds, work.operations / seconds);
        let (limit, units) = match work.units {
            Units::Floats => (self.float, "f32"),
            Units::Integers => (self.integer, "integer"),
            // Without instructions for them they are floats.
            Units::Pairs => self.pair.map_or((self.float, "f32"), |pair| (pair, "BF16")),
        };
        format!(
            "{:.2} GB/s, {:.0} % of the memory's; {:.1} G operations/s, {:.0} % of what {units} units do",
            bytes / 1e9,
            part(bytes, self.read),
            operations / 1e9,
            part(operations, limit),
        )
    }
}
