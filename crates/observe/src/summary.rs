//! The one line after a run.

use std::fmt;
use std::time::Duration;

/// Times of one answer, from the file to the last token.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RunSummary {
    /// From the start to a model that can run.
    pub load: Duration,
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were known from before and not run.
    pub cached_tokens: usize,
    /// From the first step to the first token.
    pub prompt_time: Duration,
    pub generated: usize,
    /// From the first token to the end.
    pub decode_time: Duration,
    /// From the start of the process (or of the turn) to the first token.
    pub first_token: Duration,
}

impl RunSummary {
    /// Prompt tokens run per second; `None` where nothing was timed.
    pub fn prompt_rate(&self) -> Option<f64> {
        rate(self.prompt_tokens.saturating_sub(self.cached_tokens), self.prompt_time)
    }

    /// Tokens generated per second. The first comes out of the prompt, so it is no part of the decode time.
    pub fn decode_rate(&self) -> Option<f64> {
        rate(self.generated.saturating_sub(1), self.decode_time)
    }
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

impl fmt::Display for RunSummary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "prompt {} tokens", self.prompt_tokens)?;
        if self.cached_tokens > 0 {
            write!(f, " ({} cached)", self.cached_tokens)?;
        }
        write_rate(f, self.prompt_rate())?;
        write!(f, " · generated {} tokens", self.generated)?;
        write_rate(f, self.decode_rate())?;
        write!(f, " · first token after {:.2} s", self.first_token.as_secs_f64())?;
        // A later turn of a chat loads nothing.
        match self.load.is_zero() {
            true => Ok(()),
            false => write!(f, " · load {:.2} s", self.load.as_secs_f64()),
        }
    }
}

fn write_rate(f: &mut fmt::Formatter, rate: Option<f64>) -> fmt::Result {
    match rate {
        Some(rate) => write!(f, ", {rate:.1} tok/s"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_count_what_was_run_in_the_time() {
        let summary = RunSummary {
            load: Duration::from_millis(120),
            prompt_tokens: 110,
            cached_tokens: 10,
            prompt_time: Duration::from_millis(200),
            generated: 41,
            decode_time: Duration::from_millis(500),
            first_token: Duration::from_millis(325),
        };
        assert_eq!(
            summary.to_string(),
            "prompt 110 tokens (10 cached), 500.0 tok/s · generated 41 tokens, 80.0 tok/s · \
             first token after 0.33 s · load 0.12 s"
        );
        let one = RunSummary { generated: 1, decode_time: Duration::ZERO, cached_tokens: 110, ..summary };
        assert_eq!((one.prompt_rate(), one.decode_rate()), (None, None));
        assert_eq!(
            one.to_string(),
            "prompt 110 tokens (110 cached) · generated 1 tokens · first token after 0.33 s · load 0.12 s"
        );
    }
}
