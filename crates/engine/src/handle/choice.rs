//! A choice of a request and who listens to it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use super::{Listener, Shared, Update, Wanted};
use crate::request::{FinishReason, Request, RequestStats};

/// What is known of a choice from its request.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    prompt_tokens: usize,
    pub is_embedding: bool,
}

impl Facts {
    pub fn of(request: &Request) -> Facts {
        Facts { prompt_tokens: request.prompt.len(), is_embedding: request.embedding.is_some() }
    }
}

/// Wherever it is dropped, its listener is told an end.
pub(super) struct Choice {
    /// `None` once nobody is to be told any more.
    listener: Option<Listener>,
    wanted: Arc<AtomicU8>,
    /// Whether it counts as under way.
    is_open: bool,
    pub facts: Facts,
    pub submitted: Instant,
    pub last_token: Option<Instant>,
    generated: usize,
    shared: Arc<Shared>,
}

impl Choice {
    pub fn new(listener: Listener, facts: Facts, shared: Arc<Shared>) -> Choice {
        Choice {
            listener: Some(listener),
            wanted: Arc::default(),
            is_open: true,
            facts,
            submitted: Instant::now(),
            last_token: None,
            generated: 0,
            shared,
        }
    }

    /// Where it is said that no more of it is wanted.
    pub fn wanted(&self) -> Arc<AtomicU8> {
        Arc::clone(&self.wanted)
    }

    pub fn is_cancelled(&self) -> bool {
        self.wanted.load(Ordering::Acquire) != Wanted::More as u8
    }

    /// Whether who asked for it has all that was wanted.
    pub fn is_enough(&self) -> bool {
        self.wanted.load(Ordering::Acquire) == Wanted::Enough as u8
    }

    /// Tells the listener, who hears no more of it if nobody listens or if it panics: then the choice is cancelled.
    pub fn tell(&mut self, update: Update) {
        if let Update::Token { index, .. } = update {
            self.generated = index + 1;
        }
        let Some(mut listener) = self.listener.take() else { return };
        // What it holds is dropped here where it panics.
        let told = catch_unwind(AssertUnwindSafe(move || listener(update).then_some(listener)));
        match told {
            Ok(Some(listener)) => self.listener = Some(listener),
            _ => self.wanted.store(Wanted::Nothing as u8, Ordering::Release),
        }
    }

    pub fn end(mut self, update: Update) {
        self.leave();
        self.tell(update);
        self.forget();
    }

    /// Makes room for another, before anybody hears of the end and asks for it.
    fn leave(&mut self) {
        if std::mem::take(&mut self.is_open) {
            self.shared.open.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Goes without telling anybody.
    pub fn forget(mut self) {
        self.dismiss();
    }

    fn dismiss(&mut self) {
        let listener = self.listener.take();
        // One that panics even as it goes concerns nobody else.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(listener)));
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        if self.listener.is_some() {
            let died = self.shared.died.load(Ordering::Acquire);
            self.tell_the_end(died.then_some("the engine has stopped"));
        }
        self.leave();
    }
}

impl Choice {
    pub fn fail(mut self, why: &str) {
        self.tell_the_end(Some(why));
    }

    /// That it was cut off, or why it failed.
    fn tell_the_end(&mut self, fault: Option<&str>) {
        self.leave();
        let reason = if fault.is_some() { FinishReason::Failed } else { FinishReason::Cancelled };
        let stats = RequestStats {
            prompt_tokens: self.facts.prompt_tokens,
            generated: self.generated,
            queued: self.submitted.elapsed(),
            ..RequestStats::default()
        };
        self.tell(Update::Finished { reason, stats, fault: fault.map(Arc::from) });
        self.dismiss();
        // Who is dropped here may be so when the engine's thread rings no more.
        self.shared.ring();
    }
}
