//! Finished spans and the message that a batch of them is.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Where a span belongs: a trace goes through several programs, a span is one part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub trace: u128,
    pub span: u64,
    /// The span that this one is a part of; 0 for none.
    pub parent: u64,
}

pub type Attributes = Vec<(&'static str, Value)>;

pub struct Finished {
    pub place: Place,
    pub name: String,
    /// Whether it answers somebody outside, or is a part of that.
    pub is_request: bool,
    pub began: SystemTime,
    pub ended: SystemTime,
    pub attributes: Attributes,
    pub error: Option<String>,
}

/// An `ExportTraceServiceRequest` in JSON.
pub fn of(service: &str, spans: &[Box<Finished>]) -> Value {
    let resource = vec![
        ("service.name", json!(service)),
        ("service.version", json!(env!("CARGO_PKG_VERSION"))),
        ("process.pid", json!(std::process::id())),
    ];
    let spans: Vec<Value> = spans.iter().map(|span| of_span(span)).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": listed(&resource) },
        "scopeSpans": [{ "scope": { "name": "exotherm" }, "spans": spans }],
    }] })
}

fn of_span(span: &Finished) -> Value {
    // Internal and server, unset and error, as the protocol numbers them.
    let kind = if span.is_request { 2 } else { 1 };
    let status = match &span.error {
        Some(message) => json!({ "code": 2, "message": message }),
        None => json!({}),
    };
    let mut made = json!({
        "traceId": format!("{:032x}", span.place.trace),
        "spanId": format!("{:016x}", span.place.span),
        "name": span.name,
        "kind": kind,
        "startTimeUnixNano": nanos(span.began),
        "endTimeUnixNano": nanos(span.ended),
        "attributes": listed(&span.attributes),
        "status": status,
    });
    if span.place.parent != 0 {
        made["parentSpanId"] = json!(format!("{:016x}", span.place.parent));
    }
    made
}

/// Numbers of 64 bits are text in this protocol.
fn nanos(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos()).to_string()
}

fn listed(attributes: &[(&'static str, Value)]) -> Vec<Value> {
    let value = |value: &Value| match value {
        Value::Bool(is) => json!({ "boolValue": is }),
        Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        Value::String(text) => json!({ "stringValue": text }),
        other => json!({ "stringValue": other.to_string() }),
    };
    attributes.iter().map(|(key, content)| json!({ "key": key, "value": value(content) })).collect()
}
