//! When each op of a run ended, and what its lanes did meanwhile. Off, it holds no memory and nothing is read.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::clock::{Clock, PARTS, Part};
use crate::profile::OpTime;

#[derive(Default)]
pub(crate) struct Recorder {
    begin: Option<Instant>,
    /// Nanoseconds from `begin` to the start of each op, and to the end of the last.
    starts: Vec<AtomicU64>,
    /// Of each op, summed over the lanes.
    ticks: Vec<[AtomicU64; PARTS]>,
    times: Vec<OpTime>,
}

impl Recorder {
    /// Takes all the memory that recording needs, or gives it back.
    pub fn switch(&mut self, on: bool, ops: usize) {
        if on == self.is_on() {
            return;
        }
        *self = match on {
            false => Recorder::default(),
            true => Recorder {
                begin: Some(Instant::now()),
                starts: (0..=ops).map(|_| AtomicU64::new(0)).collect(),
                ticks: (0..ops).map(|_| Default::default()).collect(),
                times: vec![OpTime::default(); ops],
            },
        };
    }

    pub fn is_on(&self) -> bool {
        self.begin.is_some()
    }

    pub fn times(&self) -> &[OpTime] {
        &self.times
    }

    /// Every lane calls it at the same moment, before the first op of a run.
    pub fn start(&self, lane: usize, op: usize, clock: &mut Clock) {
        self.note_time(lane, op);
        clock.switch(true);
    }

    /// Every lane calls it after the last barrier of each op.
    pub fn end(&self, lane: usize, op: usize, clock: &mut Clock) {
        self.note_time(lane, op + 1);
        for (sum, ticks) in self.ticks[op].iter().zip(clock.take()) {
            sum.fetch_add(ticks, Ordering::Relaxed);
        }
    }

    /// The lanes leave a barrier together, so the time of one is the time of all.
    fn note_time(&self, lane: usize, at: usize) {
        if lane == 0
            && let Some(begin) = self.begin
        {
            self.starts[at].store(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// Makes times of what the lanes noted in a run of these ops.
    pub fn settle(&mut self, ops: Range<usize>) {
        self.times.fill(OpTime::default());
        if !self.is_on() {
            return;
        }
        for op in ops {
            let [start, end] = [op, op + 1].map(|at| *self.starts[at].get_mut());
            let ticks = std::array::from_fn(|part| std::mem::take(self.ticks[op][part].get_mut()));
            self.times[op] = divided(end.saturating_sub(start), ticks);
        }
    }
}

/// Shares the time of an op out among its parts as the lanes' ticks say, those spent waiting too.
fn divided(total: u64, ticks: [u64; PARTS]) -> OpTime {
    let all: u128 = ticks.iter().map(|&t| u128::from(t)).sum();
    let part = |part: Part| (u128::from(total) * u128::from(ticks[part as usize]) / all.max(1)) as u64;
    OpTime {
        total,
        qk_norm: part(Part::QkNorm),
        rope: part(Part::Rope),
        scores: part(Part::Scores),
        softmax: part(Part::Softmax),
        values: part(Part::Values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_divided_as_the_ticks_say() {
        let mut ticks = [0; PARTS];
        ticks[Part::Scores as usize] = 50;
        ticks[Part::Values as usize] = 30;
        ticks[Part::Idle as usize] = 20;
        let time = divided(1000, ticks);
        assert_eq!(time, OpTime { total: 1000, scores: 500, values: 300, ..OpTime::default() });
        assert_eq!(divided(7, [0; PARTS]), OpTime { total: 7, ..OpTime::default() });
        assert_eq!(divided(u64::MAX, [u64::MAX; PARTS]).rope, u64::MAX / PARTS as u64);
    }

    #[test]
    fn off_it_holds_nothing() {
        let mut recorder = Recorder::default();
        recorder.settle(0..5);
        assert!(recorder.times().is_empty());
        recorder.switch(true, 5);
        let mut clock = Clock::default();
        recorder.start(0, 2, &mut clock);
        std::thread::sleep(std::time::Duration::from_millis(1));
        recorder.end(0, 2, &mut clock);
        recorder.settle(2..3);
        let times: Vec<u64> = recorder.times().iter().map(|t| t.total).collect();
        assert!(times[2] >= 1_000_000 && times[..2] == [0, 0] && times[3..] == [0, 0], "{times:?}");
        recorder.switch(false, 5);
        assert!(recorder.times().is_empty());
    }
}
