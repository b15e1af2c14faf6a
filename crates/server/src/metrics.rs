//! `/metrics`: the text that Prometheus reads.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use exotherm_engine::SchedulerStats;
use exotherm_engine::stats::{BUCKETS_S, EngineStats, Histogram};

use crate::app::App;

/// What is counted over HTTP.
pub struct Counters {
    /// Requests whose reply is not written yet.
    in_flight: AtomicUsize,
    pub connections: AtomicUsize,
    /// Connections beyond those there may be, which are being told so.
    pub turned_away: AtomicUsize,
    /// By route and status; 0 for those whose client went away before there was one.
    replies: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// By the error's code.
    refusals: Mutex<BTreeMap<&'static str, u64>>,
}

/// A request whose reply is not written to its last byte.
pub struct InFlight(Arc<Counters>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Counters {
    pub fn new() -> Counters {
        Counters {
            in_flight: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            turned_away: AtomicUsize::new(0),
            refusals: Mutex::default(),
            replies: Mutex::default(),
        }
    }

    pub fn begin(self: &Arc<Counters>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(self))
    }

    pub fn refused(&self, code: &'static str) {
        *self.refusals.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }

    pub fn end(&self, route: &'static str, status: Option<StatusCode>) {
        let status = status.map_or(0, |status| status.as_u16());
        let mut replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        *replies.entry((route, status)).or_default() += 1;
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }
}

pub fn render(app: &App) -> String {
    let (counters, models) = (&app.counters, app.loaded());
    let mut text = Text::default();
    text.family("exotherm_http_requests_total", "counter", "Requests by route and status");
    let replies = counters.replies.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for ((route, status), count) in replies {
        let labels = format!("route=\"{route}\",status=\"{status}\"");
        text.sample("exotherm_http_requests_total", &labels, count as f64);
    }
    text.family("exotherm_http_refusals_total", "counter", "Replies that tell an error, by its code");
    for (code, count) in counters.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone() {
        text.sample("exotherm_http_refusals_total", &format!("code=\"{code}\""), count as f64);
    }
    text.family("exotherm_http_connections", "gauge", "Open connections");
    text.sample("exotherm_http_connections", "", counters.connections.load(Ordering::Acquire) as f64);
    text.family(
        "exotherm_http_held_bytes",
        "gauge",
        "Memory of requests and replies until these are written",
    );
    text.sample("exotherm_http_held_bytes", "", app.room.used() as f64);
    if let Some(resident) = exotherm_observe::resident_bytes() {
        text.family("exotherm_resident_memory_bytes", "gauge", "Physical memory of the process");
        text.sample("exotherm_resident_memory_bytes", "", resident.current as f64);
    }
    let models = models.map_or(&[][..], |models| &models.0);
    let read: Vec<(String, EngineStats)> =
        models.iter().map(|model| (format!("model=\"{}\"", escaped(&model.id)), model.stats())).collect();
    engine(&read, &mut text);
    text.0
}

type Labelled = (&'static str, fn(&EngineStats) -> f64);

/// A histogram's name and help, and where it is.
type Timed = (&'static str, &'static str, fn(&EngineStats) -> &Histogram);

/// A family of samples: name, kind, help, the label that tells them apart, and the samples.
type Family = (&'static str, &'static str, &'static str, &'static str, &'static [Labelled]);

const FAMILIES: &[Family] = &[
    (
        "exotherm_requests_total",
        "counter",
        "Requests to the engine by outcome",
        "outcome",
        &[
            ("stop", |s| s.outcomes.stop.saturating_sub(s.embeddings.stop) as f64),
            ("length", |s| s.outcomes.length.saturating_sub(s.embeddings.length) as f64),
            // A text that is embedded has no answer that could end in one way or another.
            ("embedded", |s| (s.embeddings.stop + s.embeddings.length) as f64),
            ("cancelled", |s| s.outcomes.cancelled as f64),
            ("deadline", |s| s.outcomes.late as f64),
            ("failed", |s| s.outcomes.failed as f64),
            ("refused", |s| s.outcomes.refused as f64),
        ],
    ),
    (
        "exotherm_requests_waiting",
        "gauge",
        "Requests that wait to begin",
        "",
        &[("", |s| s.scheduler.waiting as f64)],
    ),
    ("exotherm_requests_running", "gauge", "Requests that run", "", &[("", |s| s.scheduler.running as f64)]),
    (
        "exotherm_kv_blocks",
        "gauge",
        "Blocks of keys and values by state",
        "state",
        &[
            ("free", |s| s.scheduler.books.free as f64),
            ("used", |s| s.scheduler.books.used as f64),
            ("cached", |s| s.scheduler.books.cached as f64),
        ],
    ),
    (
        "exotherm_tokens_total",
        "counter",
        "Tokens: of prompts, of those the cached and the embedded ones, of prompts shared by several choices, and generated",
        "kind",
        &[
            ("prompt", |s| s.scheduler.prompt_tokens as f64),
            ("cached", |s| s.scheduler.cached_tokens as f64),
            ("embedded", |s| s.scheduler.embedded_tokens as f64),
            ("shared", |s| s.scheduler.forked_tokens as f64),
            ("generated", |s| s.generated_tokens as f64),
        ],
    ),
    (
        "exotherm_prefix_hit_ratio",
        "gauge",
        "Share of prompt tokens that were cached, embeddings aside",
        "",
        &[("", |s| hit_ratio(&s.scheduler))],
    ),
    (
        "exotherm_preemptions_total",
        "counter",
        "Times that a request gave its blocks back to others",
        "",
        &[("", |s| s.scheduler.preemptions as f64)],
    ),
    (
        "exotherm_snapshots",
        "gauge",
        "Recurrent states that are remembered",
        "",
        &[("", |s| s.scheduler.snapshots as f64)],
    ),
    ("exotherm_steps_total", "counter", "Steps of the engine", "", &[("", |s| s.scheduler.steps as f64)]),
    (
        "exotherm_step_seconds_total",
        "counter",
        "Time of the engine's thread by phase",
        "phase",
        &[
            ("idle", |s| s.phases.idle.as_secs_f64()),
            ("inbox", |s| s.phases.inbox.as_secs_f64()),
            ("plan", |s| s.phases.step.plan.as_secs_f64()),
            ("run", |s| s.phases.step.run.as_secs_f64()),
            ("sample", |s| s.phases.step.sample.as_secs_f64()),
            ("commit", |s| s.phases.step.commit.as_secs_f64()),
            ("deliver", |s| s.phases.deliver.as_secs_f64()),
        ],
    ),
];

/// Texts that are embedded look nothing up.
fn hit_ratio(stats: &SchedulerStats) -> f64 {
    let looked_up = stats.prompt_tokens.saturating_sub(stats.embedded_tokens);
    stats.cached_tokens as f64 / (looked_up as f64).max(1.0)
}

fn engine(read: &[(String, EngineStats)], text: &mut Text) {
    for &(name, kind, help, label, samples) in FAMILIES {
        text.family(name, kind, help);
        for (model, stats) in read {
            for (value, sample) in samples {
                let labels = match label {
                    "" => model.clone(),
                    label => format!("{model},{label}=\"{value}\""),
                };
                text.sample(name, &labels, sample(stats));
            }
        }
    }
    const HISTOGRAMS: [Timed; 2] = [
        ("exotherm_time_to_first_token_seconds", "From a request to its first token", |s| &s.first_token),
        ("exotherm_time_between_tokens_seconds", "From a token to the next", |s| &s.between_tokens),
    ];
    for (name, help, histogram) in HISTOGRAMS {
        text.family(name, "histogram", help);
        for (model, stats) in read {
            text.histogram(name, model, histogram(stats));
        }
    }
}

#[derive(Default)]
struct Text(String);

// Writing to a string does not fail.
impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let mut below = 0;
        let ends = BUCKETS_S.iter().map(f64::to_string).chain(["+Inf".to_string()]);
        for (end, count) in ends.zip(histogram.counts) {
            below += count;
            self.sample(&format!("{name}_bucket"), &format!("{labels},le=\"{end}\""), below as f64);
        }
        self.sample(&format!("{name}_sum"), labels, seconds(histogram.sum));
        self.sample(&format!("{name}_count"), labels, below as f64);
    }
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
