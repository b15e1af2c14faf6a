//! How long things take, told to whoever watches. The store only knows the trait.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One task at a time: a `begin` while another task runs takes its place.
pub trait Progress: Sync {
    fn begin(&self, label: &str, total_bytes: Option<u64>);
    /// `bytes` more than before.
    fn advance(&self, bytes: u64);
    fn finish(&self);
    /// A sentence worth knowing that is not an error.
    fn note(&self, text: &str);
}

/// Says nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _label: &str, _total_bytes: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
    fn note(&self, _text: &str) {}
}

/// A bar on stderr when that is a terminal, else one plain line a task, so that a log stays readable.
#[derive(Debug)]
pub struct TerminalProgress {
    is_terminal: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl TerminalProgress {
    pub fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), bar: Mutex::new(None) }
    }

    fn bar(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for TerminalProgress {
    fn default() -> Self {
        Self::new()
    }
}

fn style(has_total: bool) -> ProgressStyle {
    let template = if has_total {
        "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {elapsed}"
    } else {
        "{spinner} {msg} {bytes} {elapsed}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for TerminalProgress {
    fn begin(&self, label: &str, total_bytes: Option<u64>) {
        let mut slot = self.bar();
        if let Some(previous) = slot.take() {
            previous.finish_and_clear();
        }
        if !self.is_terminal {
            match total_bytes {
                Some(total) => eprintln!("{label} ({})", HumanBytes(total)),
                None => eprintln!("{label}"),
            }
            return;
        }
        let bar = ProgressBar::with_draw_target(total_bytes, ProgressDrawTarget::stderr());
        bar.set_style(style(total_bytes.is_some()));
        bar.set_message(label.to_owned());
        // The clock and the spinner keep moving while a server keeps us waiting.
        bar.enable_steady_tick(Duration::from_millis(120));
        *slot = Some(bar);
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = self.bar().as_ref() {
            bar.inc(bytes);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.bar().take() {
            bar.finish_and_clear();
        }
    }

    fn note(&self, text: &str) {
        match self.bar().as_ref() {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

/// A running task: dropping it ends it, so that an error never leaves a bar behind.
pub(crate) struct Task<'a>(&'a dyn Progress);

impl<'a> Task<'a> {
    pub(crate) fn begin(progress: &'a dyn Progress, label: &str, total_bytes: Option<u64>) -> Self {
        progress.begin(label, total_bytes);
        Self(progress)
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}
