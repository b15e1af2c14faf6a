//! Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};

use crate::output::INTERRUPTED;

/// Ctrl-C ends the process at once, but for work that looks at the flag itself, to end in good order; a second Ctrl-C
/// ends that at once as well.
#[derive(Clone)]
pub struct Interrupt {
    pressed: Arc<AtomicBool>,
    watched: Arc<AtomicBool>,
}

impl Interrupt {
    pub fn install() -> Result<Interrupt> {
        let interrupt = Interrupt { pressed: Arc::default(), watched: Arc::default() };
        let handler = interrupt.clone();
        ctrlc::set_handler(move || {
            let again = handler.pressed.swap(true, Ordering::SeqCst);
            if again || !handler.watched.load(Ordering::SeqCst) {
                std::process::exit(i32::from(INTERRUPTED));
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(interrupt)
    }

    /// One that nothing presses.
    #[cfg(test)]
    pub fn idle() -> Interrupt {
        Interrupt { pressed: Arc::default(), watched: Arc::default() }
    }

    /// While the guard lives, someone looks at the flag.
    pub fn watch(&self) -> Watch<'_> {
        self.watched.store(true, Ordering::SeqCst);
        Watch(self)
    }

    pub fn pressed(&self) -> bool {
        self.pressed.load(Ordering::SeqCst)
    }

    /// Forgets a press that has been dealt with.
    pub fn clear(&self) {
        self.pressed.store(false, Ordering::SeqCst);
    }

    pub fn flag(&self) -> &Arc<AtomicBool> {
        &self.pressed
    }
}

pub struct Watch<'a>(&'a Interrupt);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.watched.store(false, Ordering::SeqCst);
    }
}
