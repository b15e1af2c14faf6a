//! Spans for a collector of OpenTelemetry's, as its protocol has them over HTTP in JSON.
//!
//! Whoever serves requests only puts finished spans into a queue, and drops them when it is full; one thread sends them in
//! batches. So a collector that is slow or gone costs spans, never an answer.

mod layer;
mod message;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{Builder, sleep};
use std::time::{Duration, Instant};

pub use layer::SpanLayer;
use message::Finished;

/// Spans that may wait to be sent, and those that are sent at once.
const MOST_WAITING: usize = 2048;
const MOST_AT_ONCE: usize = 256;
/// How long spans are gathered, and how long a collector may take over a batch.
const GATHERING: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);

/// Where spans go, and under which name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Collector {
    url: String,
    headers: Vec<(String, String)>,
    service: String,
}

impl Collector {
    /// The collector at `base` (`http://localhost:4318`), with what the environment says of the rest.
    pub fn new(base: &str) -> Result<Collector, String> {
        Collector::read(base, &|name| std::env::var(name).ok())
    }

    fn read(base: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Collector, String> {
        let uri: ureq::http::Uri =
            base.parse().map_err(|error| format!("{base:?} is no address of a collector: {error}"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(format!("{base:?} is no address of a collector; write http://HOST:PORT"));
        }
        let headers = variable("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default();
        let header = |pair: &str| match pair.split_once('=') {
            Some((name, value)) => Ok((name.trim().to_string(), value.trim().to_string())),
            None => Err("OTEL_EXPORTER_OTLP_HEADERS is not of the form name=value,name=value".to_string()),
        };
        let pairs = headers.split(',').filter(|pair| !pair.trim().is_empty());
        Ok(Collector {
            url: format!("{}/v1/traces", base.trim_end_matches('/')),
            headers: pairs.map(header).collect::<Result<_, _>>()?,
            service: variable("OTEL_SERVICE_NAME").filter(|n| !n.is_empty()).unwrap_or("exotherm".into()),
        })
    }

    pub fn url(&self) -> &str {
        &self.url
    }
}

enum Task {
    Send(Box<Finished>),
    /// Tell when everything before it was tried, by dropping this.
    Tell {
        _when_dropped: SyncSender<()>,
    },
}

/// The way to the thread that sends.
#[derive(Clone)]
struct Queue {
    tasks: SyncSender<Task>,
    dropped: Arc<AtomicU64>,
}

impl Queue {
    fn push(&self, span: Finished) {
        if self.tasks.try_send(Task::Send(Box::new(span))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub struct Exporter {
    queue: Queue,
}

impl Exporter {
    pub fn start(collector: Collector) -> std::io::Result<Exporter> {
        let (tasks, waiting) = sync_channel(MOST_WAITING);
        let queue = Queue { tasks, dropped: Arc::default() };
        let mut sender = Sender::new(collector, Arc::clone(&queue.dropped));
        Builder::new().name("otlp".into()).spawn(move || sender.run(&waiting))?;
        Ok(Exporter { queue })
    }

    /// What watches spans for it.
    pub fn layer(&self) -> SpanLayer {
        SpanLayer::new(self.queue.clone())
    }

    /// Spans that nobody got: there was no room for them, or the collector did not take them.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all spans so far were sent, as far as that is done in this time.
    pub fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let (tell, told) = sync_channel(0);
        let mut task = Task::Tell { _when_dropped: tell };
        while let Err(TrySendError::Full(again)) = self.queue.tasks.try_send(task) {
            if Instant::now() > deadline {
                return;
            }
            task = again;
            sleep(Duration::from_millis(5));
        }
        // Nothing is ever said: it ends with the other end, or with the time.
        let _: Result<(), RecvTimeoutError> =
            told.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

struct Sender {
    collector: Collector,
    agent: ureq::Agent,
    dropped: Arc<AtomicU64>,
    /// Whether the last batch was taken; a change is told once.
    is_heard: bool,
}

impl Sender {
    fn new(collector: Collector, dropped: Arc<AtomicU64>) -> Sender {
        let mut config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE));
        let local = ["http://127.", "http://localhost:", "http://[::1]"];
        if local.iter().any(|start| collector.url.starts_with(start)) {
            // Nobody stands between this machine and itself.
            config = config.proxy(None);
        }
        Sender { agent: config.build().into(), collector, dropped, is_heard: true }
    }

    fn run(&mut self, waiting: &Receiver<Task>) {
        while let Ok(first) = waiting.recv() {
            let (mut batch, mut tell) = (Vec::new(), Vec::new());
            let mut sort = |task| match task {
                Task::Send(span) => batch.push(span),
                Task::Tell { _when_dropped } => tell.push(_when_dropped),
            };
            sort(first);
            let end = Instant::now() + GATHERING;
            let mut count = 1;
            while count < MOST_AT_ONCE
                && let Ok(task) = waiting.recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                let is_last = matches!(task, Task::Tell { .. });
                sort(task);
                count += 1;
                if is_last {
                    break;
                }
            }
            if !batch.is_empty() {
                self.send(&batch);
            }
        }
    }

    fn send(&mut self, batch: &[Box<Finished>]) {
        let body = message::of(&self.collector.service, batch).to_string();
        let mut request = self.agent.post(&self.collector.url).header("content-type", "application/json");
        for (name, value) in &self.collector.headers {
            request = request.header(name, value);
        }
        match request.send(body) {
            Ok(_) if self.is_heard => {}
            Ok(_) => {
                let lost = self.dropped.load(Ordering::Relaxed);
                self.is_heard = true;
                crate::line(&format!("[otlp] {} takes spans again; {lost} were lost", self.collector.url));
            }
            Err(error) => {
                self.dropped.fetch_add(batch.len() as u64, Ordering::Relaxed);
                if std::mem::take(&mut self.is_heard) {
                    let url = &self.collector.url;
                    crate::line(&format!("[otlp] {url} does not take spans, they are dropped: {error}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_where_the_environment_says() {
        let none = |_: &str| None;
        let collector = Collector::read("http://localhost:4318/", &none).expect("an address");
        assert_eq!(
            (collector.url(), collector.service.as_str()),
            ("http://localhost:4318/v1/traces", "exotherm")
        );
        let some = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_HEADERS" => Some("authorization=Basic a=b, x-team = blue,".to_string()),
            _ => Some("chat".to_string()),
        };
        let collector = Collector::read("https://collector.example/otlp", &some).expect("an address");
        assert_eq!(collector.url(), "https://collector.example/otlp/v1/traces");
        let pairs = [("authorization", "Basic a=b"), ("x-team", "blue")];
        assert_eq!(collector.headers, pairs.map(|(name, value)| (name.to_string(), value.to_string())));
        assert_eq!(collector.service, "chat");
        for wrong in ["", "localhost:4318", "grpc://localhost:4317", "http://", "a b"] {
            assert!(Collector::read(wrong, &none).is_err(), "{wrong:?}");
        }
        let nonsense = |_: &str| Some("nonsense".to_string());
        assert!(Collector::read("http://localhost:4318", &nonsense).is_err());
    }
}
