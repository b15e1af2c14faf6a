//! stdout carries data and nothing else; what is said to a person goes to stderr. And how the process ends.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use exotherm_weights::WeightsError;
use exotherm_weights::store::{Progress, Silent, StoreError, TerminalProgress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

pub const USAGE: u8 = 2;
/// What shells give for a process that SIGINT ended.
pub const INTERRUPTED: u8 = 130;

/// Whoever read our output has had enough (`| head`): a quiet end, no error.
#[derive(Debug, thiserror::Error)]
#[error("the output was closed")]
struct OutputClosed;

/// The user pressed Ctrl-C.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Arguments that do not go together in a way that clap cannot know.
#[derive(Debug, thiserror::Error)]
#[error("{0}\n\nFor more information, try '--help'.")]
pub struct UsageError(pub String);

/// The process's end: 0, or 1 for an error, 2 for wrong usage, 130 for Ctrl-C.
pub fn end(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    let cancelled = matches!(error.downcast_ref(), Some(StoreError::Cancelled))
        || matches!(error.downcast_ref(), Some(WeightsError::Cancelled));
    if cancelled || error.is::<Interrupted>() {
        note("interrupted");
        return ExitCode::from(INTERRUPTED);
    }
    note(format_args!("error: {error:#}"));
    if error.is::<UsageError>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}

/// A line on stderr. That nobody may be listening there is no reason to fail.
pub fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// stdout, whose errors are told apart from all others.
pub struct Out {
    inner: io::BufWriter<io::StdoutLock<'static>>,
}

impl Out {
    pub fn new() -> Out {
        Out { inner: io::BufWriter::new(io::stdout().lock()) }
    }

    pub fn text(&mut self, text: impl fmt::Display) -> anyhow::Result<()> {
        write!(self.inner, "{text}").map_err(closed)
    }

    pub fn line(&mut self, text: impl fmt::Display) -> anyhow::Result<()> {
        writeln!(self.inner, "{text}").map_err(closed)
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.inner.write_all(bytes).map_err(closed)
    }

    /// One row of numbers as JSON, each in the fewest digits that read back as the same f32.
    pub fn numbers(&mut self, row: &[f32]) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.inner, row).map_err(|e| closed(e.into()))
    }

    pub fn flush(&mut self) -> anyhow::Result<()> {
        self.inner.flush().map_err(closed)
    }
}

fn closed(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => anyhow::Error::new(error).context("cannot write to stdout"),
    }
}

/// Prints a JSON object on one line.
pub fn json(value: &Value) -> anyhow::Result<()> {
    let mut out = Out::new();
    out.line(value)?;
    out.flush()
}

/// Prints a text, with a newline at its end.
pub fn text(text: impl fmt::Display) -> anyhow::Result<()> {
    let mut out = Out::new();
    out.line(text)?;
    out.flush()
}

/// Bars on a terminal; of long work, a line each elsewhere.
pub fn progress() -> TerminalProgress {
    TerminalProgress::new()
}

/// Bars on a terminal, nothing elsewhere: for work that is usually short.
pub fn quiet_progress() -> Box<dyn Progress + Send + Sync> {
    if io::stderr().is_terminal() { Box::new(TerminalProgress::new()) } else { Box::new(Silent) }
}

/// A bar over steps that are counted, on a terminal only.
pub fn steps(unit: &str, total: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template(&format!("{{wide_bar}} {{pos}}/{{len}} {unit} {{elapsed}} {{msg}}"));
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Sizes as people read them.
pub fn size(bytes: u64) -> String {
    const STEP: f64 = 1024.0;
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < STEP {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= STEP;
    }
    format!("{value:.1} TiB")
}

/// Lines of columns, each as wide as its widest cell; the last is not padded.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(98_362_432), "93.8 MiB");
        assert_eq!(size(3 << 40), "3.0 TiB");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_string(), "b".into()], vec!["long".into(), "cell".into()]];
        assert_eq!(table(&rows), "a     b\nlong  cell");
    }
}
