//! What is known of a request in the end: its span, one event that tells everything in a line, and the counts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::http::{Method, StatusCode};
use exotherm_observe::REQUESTS;
use tracing::{Level, Span, enabled, info};

use crate::app::App;
use crate::body::{Part, Room, Share};
use crate::error::ApiError;
use crate::generate::Choice;
use crate::metrics::{Counters, InFlight};
use crate::spans;
use crate::wire::{Holding, Unwritten};

/// A request from its first byte to the last of its reply: dropped with the reply's body, it tells what became of it.
pub struct Trace {
    pub id: String,
    method: Method,
    /// The route, or what stands for all paths that are none.
    route: &'static str,
    began: Instant,
    pub span: Span,
    facts: Mutex<Facts>,
    counters: Arc<Counters>,
    in_flight: Option<InFlight>,
    room: Arc<Room>,
    /// Memory that the reply takes until it is written.
    shares: Mutex<Vec<Share>>,
    unwritten: Arc<Unwritten>,
}

#[derive(Default)]
struct Facts {
    status: Option<StatusCode>,
    model: Option<String>,
    prompt_tokens: usize,
    cached_tokens: usize,
    generated: usize,
    finish: Option<&'static str>,
    error: Option<String>,
}

impl Trace {
    pub fn begin(method: Method, route: &'static str, app: &App, unwritten: Arc<Unwritten>) -> Arc<Trace> {
        let counters = Arc::clone(&app.counters);
        unwritten.begin();
        let id = crate::ids::unique("req");
        let span = spans::of_request(&id, &method, route);
        Arc::new(Trace {
            id,
            span,
            method,
            route,
            began: Instant::now(),
            facts: Mutex::default(),
            in_flight: Some(counters.begin()),
            counters,
            room: Arc::clone(&app.room),
            shares: Mutex::default(),
            unwritten,
        })
    }

    /// A share of the memory that there is for replies, with nothing in it.
    pub fn share(&self) -> Share {
        Share::new(&self.room, Part::Reply)
    }

    pub fn most_held(&self) -> usize {
        self.room.most(Part::Reply)
    }

    /// Counts memory as taken until the reply is written.
    pub fn hold(&self, share: Share) {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).push(share);
    }

    fn note(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn status(&self, status: StatusCode) {
        self.span.record("http.response.status_code", status.as_u16());
        self.note(|facts| facts.status = Some(status));
    }

    pub fn model(&self, id: &str) {
        self.span.record("gen_ai.request.model", id);
        self.note(|facts| facts.model = Some(id.to_string()));
    }

    pub fn failed(&self, error: &ApiError) {
        self.span.record("error", error.message.as_str());
        self.counters.refused(error.code.unwrap_or("other"));
        self.note(|facts| {
            facts.finish = error.code;
            facts.error = Some(error.message.clone());
        });
    }

    /// Texts of so many tokens were embedded.
    pub fn embedded(&self, tokens: usize) {
        self.note(|facts| {
            facts.prompt_tokens = tokens;
            facts.finish = Some("embedded");
            self.span.record("gen_ai.usage.input_tokens", facts.prompt_tokens);
        });
    }

    /// All choices are there; so many belong to each prompt, which is counted once.
    pub fn finished(&self, choices: &[Choice], per_prompt: usize) {
        self.note(|facts| {
            let firsts = || choices.iter().step_by(per_prompt);
            facts.prompt_tokens = firsts().map(|c| c.stats.prompt_tokens).sum();
            facts.cached_tokens = firsts().map(|c| c.stats.cached_tokens).sum();
            facts.generated = choices.iter().map(|c| c.tokens).sum();
            facts.finish = choices.first().and_then(|c| c.finish).map(|finish| finish.name());
            self.span.record("gen_ai.usage.input_tokens", facts.prompt_tokens);
            self.span.record("gen_ai.usage.output_tokens", facts.generated);
            self.span.record("cached_tokens", facts.cached_tokens);
            self.span.record("finish", facts.finish);
        });
        spans::phases(&self.span, choices);
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Some(in_flight) = self.in_flight.take() {
            let shares = std::mem::take(self.shares.get_mut().unwrap_or_else(PoisonError::into_inner));
            self.unwritten.made(Holding { _in_flight: in_flight, _shares: shares });
        }
        let facts = self.facts.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.counters.end(self.route, facts.status);
        if !enabled!(target: REQUESTS, Level::INFO) {
            return;
        }
        let status = facts.status.map_or("-".to_string(), |status| status.as_u16().to_string());
        let took = self.began.elapsed().as_secs_f64() * 1e3;
        let mut line = format!("{} {} status={status} ms={took:.1}", self.method, self.route);
        if let Some(model) = &facts.model {
            line += &format!(
                " model={model:?} prompt={} cached={} generated={} finish={}",
                facts.prompt_tokens,
                facts.cached_tokens,
                facts.generated,
                // Nothing was noted of a client that went away.
                facts.finish.unwrap_or("gone"),
            );
        }
        if let Some(error) = &facts.error {
            line += &format!(" error={error:?}");
        }
        info!(target: REQUESTS, parent: &self.span, "{line}");
    }
}
