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
    /// Whether an end at once is a good one: nothing was begun that others wait for.
    harmless: Arc<AtomicBool>,
}

impl Interrupt {
    pub fn install() -> Result<Interrupt> {
        let interrupt = Interrupt::unheard();
        let handler = interrupt.clone();
        ctrlc::set_handler(move || {
            let again = handler.pressed.swap(true, Ordering::SeqCst);
            if again || !handler.watched.load(Ordering::SeqCst) {
                let is_harmless = !again && handler.harmless.load(Ordering::SeqCst);
                std::process::exit(if is_harmless { 0 } else { i32::from(INTERRUPTED) });
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(interrupt)
    }

    /// One that nothing presses.
    #[cfg(test)]
    pub fn idle() -> Interrupt {
        Interrupt::unheard()
    }

    fn unheard() -> Interrupt {
        Interrupt { pressed: Arc::default(), watched: Arc::default(), harmless: Arc::default() }
    }

    /// From now on, or no longer, the end that nobody looks at the flag for is a good one.
    pub fn set_harmless(&self, harmless: bool) {
        self.harmless.store(harmless, Ordering::SeqCst);
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
