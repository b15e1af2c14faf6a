//! From `tracing`'s spans to spans of the protocol.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes as Given, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::Queue;
use super::message::{Attributes, Finished, Place};
use crate::spans::PHASES;

/// Characters of a text that are sent.
const MOST_CHARACTERS: usize = 256;

pub struct SpanLayer {
    queue: Queue,
}

/// A span that is not over.
struct Open {
    place: Place,
    is_request: bool,
    is_wanted: bool,
    began: SystemTime,
    fields: Fields,
}

impl SpanLayer {
    pub(super) fn new(queue: Queue) -> SpanLayer {
        SpanLayer { queue }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanLayer {
    fn on_new_span(&self, given: &Given, id: &Id, context: Context<S>) {
        let Some(span) = context.span(id) else { return };
        let parent = span.parent();
        let above = parent
            .as_ref()
            .and_then(|parent| parent.extensions().get::<Open>().map(|open| (open.place, open.is_wanted)));
        let (above, is_wanted) = above.unzip();
        let place = above.map_or_else(
            || Place { trace: u128::from(number()) << 64 | u128::from(number()), span: number(), parent: 0 },
            |above: Place| Place { span: number(), parent: above.span, ..above },
        );
        let mut open = Open {
            place,
            is_request: above.is_none(),
            is_wanted: is_wanted.unwrap_or(true),
            began: SystemTime::now(),
            fields: Fields::default(),
        };
        given.record(&mut open.fields);
        open.join();
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &Id, values: &Record, context: Context<S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            values.record(&mut open.fields);
            open.join();
        }
    }

    /// A part that is over is a span of its own; other events say nothing that the span does not.
    fn on_event(&self, event: &Event, context: Context<S>) {
        if event.metadata().target() != PHASES {
            return;
        }
        let Some(span) = context.event_span(event) else { return };
        let extensions = span.extensions();
        let Some(open) = extensions.get::<Open>().filter(|open| open.is_wanted) else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut time = |name: &str| {
            let milliseconds = fields.take(name).and_then(|value| value.as_f64()).unwrap_or_default();
            Duration::try_from_secs_f64(milliseconds / 1e3).unwrap_or_default()
        };
        let (took, ago) = (time("ms"), time("ms_ago"));
        let began = SystemTime::now().checked_sub(ago).unwrap_or(open.began).max(open.began);
        self.queue.push(Finished {
            place: Place { span: number(), parent: open.place.span, ..open.place },
            name: fields.message,
            is_request: false,
            began,
            ended: began + took,
            attributes: fields.attributes,
            error: None,
        });
    }

    fn on_close(&self, id: Id, context: Context<S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(open) = span.extensions_mut().remove::<Open>().filter(|open| open.is_wanted) else { return };
        let Open { place, is_request, began, mut fields, .. } = open;
        let name = fields.take("otel.name").and_then(|name| name.as_str().map(str::to_string));
        // What a client did wrong is no error of this server.
        let status = fields.get("http.response.status_code").and_then(Value::as_u64).unwrap_or(0);
        let error = fields.get("error").filter(|_| status >= 500 || status == 200).map(|e| match e {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        self.queue.push(Finished {
            place,
            name: name.unwrap_or_else(|| span.name().to_string()),
            is_request,
            began,
            ended: SystemTime::now(),
            attributes: fields.attributes,
            error,
        });
    }
}

impl Open {
    /// Makes the request a part of its client's trace, if it names one.
    fn join(&mut self) {
        let Some(parent) = self.fields.take("traceparent") else { return };
        if let Some((trace, parent, is_wanted)) = parent.as_str().and_then(trace_parent) {
            self.place = Place { trace, span: self.place.span, parent };
            self.is_wanted = is_wanted;
        }
    }
}

/// The header `traceparent`: version, trace, span and flags, of which the last bit says whether anybody wants to see it.
fn trace_parent(text: &str) -> Option<(u128, u64, bool)> {
    let mut parts = text.split('-');
    let mut part = |length: usize| {
        parts.next().filter(|part| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok().filter(|&trace| trace != 0)?;
    let span = u64::from_str_radix(span, 16).ok().filter(|&span| span != 0)?;
    Some((trace, span, u8::from_str_radix(flags, 16).ok()? & 1 == 1))
}

/// A number that no other span has.
fn number() -> u64 {
    static KEY: std::sync::LazyLock<RandomState> = std::sync::LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // Zero would mean none.
    KEY.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)).max(1)
}

#[derive(Default)]
struct Fields {
    message: String,
    attributes: Attributes,
}

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.attributes.iter().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.attributes.iter().position(|(field, _)| *field == name)?;
        Some(self.attributes.swap_remove(at).1)
    }

    fn set(&mut self, field: &Field, value: Value) {
        self.take(field.name());
        self.attributes.push((field.name(), value));
    }

    fn text(&mut self, field: &Field, text: &str) {
        let text: String = text.chars().take(MOST_CHARACTERS).collect();
        match field.name() {
            "message" => self.message = text,
            _ => self.set(field, Value::String(text)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, json!(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_taken_only_as_it_is_meant() {
        let text = |version: &str, flags: &str| format!("{version}-{:032x}-{:016x}-{flags}", 0xabc, 0xde);
        assert_eq!(trace_parent(&text("00", "01")), Some((0xabc, 0xde, true)));
        assert_eq!(trace_parent(&text("00", "00")), Some((0xabc, 0xde, false)));
        assert_eq!(trace_parent(&(text("01", "03") + "-more")), Some((0xabc, 0xde, true)));
        for wrong in
            [text("ff", "01"), text("00", "1"), text("00", "01-x"), String::new(), "00-+1-1-01".into()]
        {
            assert_eq!(trace_parent(&wrong), None, "{wrong:?}");
        }
        assert_eq!(trace_parent(&format!("00-{:032x}-{:016x}-01", 0, 1)), None);
    }

    #[test]
    fn numbers_are_never_none() {
        assert!((0..1000).all(|_| number() != 0));
    }
}
