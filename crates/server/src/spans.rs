//! Requests as `tracing` sees them: a span each, with its name, its end and its parts.

use axum::http::{HeaderMap, Method};
use exotherm_observe::{PHASES, REQUESTS};
use tracing::field::Empty;
use tracing::{Span, debug, info_span};

use crate::generate::Choice;
use crate::reply::milliseconds;

/// The span of a request; what is not known yet is recorded when it is. The names are OpenTelemetry's where it has some.
pub fn of_request(id: &str, method: &Method, route: &'static str) -> Span {
    info_span!(
        target: REQUESTS,
        "request",
        id = %id,
        otel.name = %format_args!("{method} {route}"),
        http.request.method = %method,
        http.route = route,
        http.response.status_code = Empty,
        gen_ai.request.model = Empty,
        gen_ai.usage.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
        cached_tokens = Empty,
        finish = Empty,
        error = Empty,
        traceparent = Empty,
    )
}

/// Tells whose trace the request is a part of, if its client says so.
pub fn join(span: &Span, headers: &HeaderMap) {
    if let Some(parent) = headers.get("traceparent").and_then(|value| value.to_str().ok()) {
        span.record("traceparent", parent);
    }
}

/// Tells the parts of an answer that has just ended.
pub fn phases(span: &Span, choices: &[Choice]) {
    for (i, choice) in choices.iter().enumerate() {
        let stats = &choice.stats;
        let mut ago = stats.queued + stats.prompt_time + stats.decode_time;
        for (name, took) in
            [("queued", stats.queued), ("prompt", stats.prompt_time), ("decode", stats.decode_time)]
        {
            let (ms, ms_ago) = (milliseconds(took), milliseconds(ago));
            debug!(target: PHASES, parent: span, choice = i, ms, ms_ago, "{name}");
            ago = ago.saturating_sub(took);
        }
    }
}
