//! What an engine on its own thread tells of itself while it runs.

use std::time::Duration;

use crate::request::FinishReason;
use crate::scheduler::SchedulerStats;

/// Upper ends of a histogram's buckets, in seconds; one more bucket takes what is longer.
pub const BUCKETS_S: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// How often something took how long.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Histogram {
    /// Of each bucket alone.
    pub counts: [u64; BUCKETS_S.len() + 1],
    pub sum: Duration,
}

impl Histogram {
    pub fn note(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS_S.iter().position(|&end| seconds <= end).unwrap_or(BUCKETS_S.len());
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(took);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Requests that are over, by how they ended.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Outcomes {
    pub stop: u64,
    pub length: u64,
    pub cancelled: u64,
    /// Those whose deadline passed.
    pub late: u64,
    pub failed: u64,
    pub refused: u64,
}

impl Outcomes {
    pub(crate) fn of(&mut self, reason: FinishReason) -> &mut u64 {
        match reason {
            FinishReason::Stop(_) => &mut self.stop,
            FinishReason::Length => &mut self.length,
            FinishReason::Cancelled => &mut self.cancelled,
            FinishReason::Deadline => &mut self.late,
            FinishReason::Failed => &mut self.failed,
        }
    }
}

/// Where the time of steps went.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StepTimes {
    /// Saying what is to run.
    pub plan: Duration,
    /// The program, and what is copied before and after it.
    pub run: Duration,
    /// Choosing tokens.
    pub sample: Duration,
    /// Taking in what came of it.
    pub commit: Duration,
}

/// Where the engine's thread spent its time.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Phases {
    /// Waiting for something to do.
    pub idle: Duration,
    /// Taking requests in and letting go of those nobody waits for.
    pub inbox: Duration,
    pub step: StepTimes,
    /// Telling what came of a step.
    pub deliver: Duration,
}

/// A reading between two steps.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct EngineStats {
    pub scheduler: SchedulerStats,
    /// Tokens of answers; a text that is embedded has none.
    pub generated_tokens: u64,
    pub outcomes: Outcomes,
    /// Those of them that were of texts to be embedded.
    pub embeddings: Outcomes,
    /// From submission to the first token of an answer.
    pub first_token: Histogram,
    /// From a token to the next of the same request.
    pub between_tokens: Histogram,
    pub phases: Phases,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::default();
        for micros in [1, 1_000, 1_001, 61_000_000] {
            histogram.note(Duration::from_micros(micros));
        }
        assert_eq!((histogram.counts[0], histogram.counts[1], histogram.counts[16]), (2, 1, 1));
        assert_eq!((histogram.count(), histogram.sum), (4, Duration::from_micros(61_002_002)));
    }
}
