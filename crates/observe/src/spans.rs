//! Requests as spans: who watches them, and the lines that tell of them on stderr.

use std::fmt::{Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::filter::shows;

/// The target of a request's span, and of the event that is its end.
pub const REQUESTS: &str = "exotherm::http";
/// The target of events that tell a part of a request that is over: its name is the message, `ms` what it took and
/// `ms_ago` when it began.
pub const PHASES: &str = "exotherm::phase";

/// Writes events as lines from now on, as `RUST_LOG` asks for them; without it nobody watches and nothing is done.
pub fn subscribe() {
    if let Ok(filter) = std::env::var("RUST_LOG")
        && !filter.is_empty()
    {
        watch(Registry::default().with(lines(filter)));
    }
}

/// The same, and sends spans away.
#[cfg(feature = "otlp")]
pub fn subscribe_and_send(exporter: &crate::otlp::Exporter) {
    let of_requests = filter_fn(|about| about.target() == REQUESTS || about.target() == PHASES);
    let filter = std::env::var("RUST_LOG").unwrap_or_default();
    watch(Registry::default().with(lines(filter)).with(exporter.layer().with_filter(of_requests)));
}

fn watch(subscriber: impl Subscriber + Send + Sync) {
    // A second one would be a mistake of the program's own; the first goes on.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

fn lines<S: Subscriber + for<'a> LookupSpan<'a>>(filter: String) -> impl Layer<S> {
    RequestLines.with_filter(filter_fn(move |about: &Metadata| {
        about.target().starts_with("exotherm::") && shows(&filter, about.target(), about.level().as_str())
    }))
}

/// `[http] id=req-… POST /v1/completions status=200 …`: the target's last part, the request, and what is said.
struct RequestLines;

/// The name of the request that a span belongs to, as its line begins.
struct RequestId(String);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for RequestLines {
    fn on_new_span(&self, attributes: &Attributes, id: &Id, context: Context<S>) {
        let mut named = Named(String::new());
        attributes.record(&mut named);
        if let (Some(span), false) = (context.span(id), named.0.is_empty()) {
            span.extensions_mut().insert(RequestId(named.0));
        }
    }

    fn on_event(&self, event: &Event, context: Context<S>) {
        let target = event.metadata().target();
        let mut line = format!("[{}]", target.rsplit("::").next().unwrap_or(target));
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(RequestId(id)) = span.extensions().get() {
                let _ = write!(line, " id={id}");
            }
        }
        event.record(&mut Written(&mut line));
        crate::line(&line);
    }
}

/// The field `id`.
struct Named(String);

impl Visit for Named {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "id" {
            self.0 = format!("{value:?}");
        }
    }
}

/// All fields, one after the other.
struct Written<'a>(&'a mut String);

impl Visit for Written<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
