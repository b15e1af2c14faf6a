//! Where a lane's time goes inside a fused op. Off, a lap is one branch that is never taken.

/// The parts that a fused op tells apart. What is not said to be another part is `Main`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Main,
    QkNorm,
    Rope,
    Scores,
    Softmax,
    Values,
    /// Waiting at a barrier for the other lanes.
    Idle,
}

pub(crate) const PARTS: usize = 7;

/// A lane's stopwatch.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Clock {
    on: bool,
    since: u64,
    /// Ticks of each part since they were last taken.
    ticks: [u64; PARTS],
}

impl Clock {
    pub fn switch(&mut self, on: bool) {
        *self = Clock { on, since: now(on), ticks: [0; PARTS] };
    }

    /// What passed since the last lap was time of `part`.
    #[inline(always)]
    pub fn lap(&mut self, part: Part) {
        if self.on {
            self.note(part);
        }
    }

    #[cold]
    fn note(&mut self, part: Part) {
        let now = now(true);
        self.ticks[part as usize] += now.saturating_sub(self.since);
        self.since = now;
    }

    /// The ticks of all parts, which begin again at nothing.
    pub fn take(&mut self) -> [u64; PARTS] {
        std::mem::take(&mut self.ticks)
    }
}

/// A counter that only ratios are made of.
fn now(on: bool) -> u64 {
    if !on {
        return 0;
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_are_counted_only_while_it_is_on() {
        let mut clock = Clock::default();
        clock.lap(Part::Scores);
        assert_eq!(clock.take(), [0; PARTS]);
        clock.switch(true);
        std::thread::sleep(std::time::Duration::from_millis(1));
        clock.lap(Part::Scores);
        clock.lap(Part::Values);
        let ticks = clock.take();
        assert!(ticks[Part::Scores as usize] > ticks[Part::Values as usize], "{ticks:?}");
        assert_eq!(clock.take(), [0; PARTS]);
    }
}
