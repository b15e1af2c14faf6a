//! Replies as server-sent events, each written when its token comes.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Response;
use futures_util::future::{Either, select};
use futures_util::stream::unfold;
use serde_json::Value;
use tokio::time::{Instant, Sleep, sleep};

use crate::answer::{Job, Kind, event_stream};
use crate::error::ApiError;
use crate::generate::{Finish, Logged, Progress, Running};
use crate::reply::Envelope;
use crate::trace::Trace;

/// How often a stream without tokens shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// About what is written at a time of what has piled up; the rest follows when the client has taken that.
const AT_A_TIME: usize = 16 << 10;

pub fn response(job: Job, envelope: Envelope, running: Running, trace: Arc<Trace>) -> Response<Body> {
    let (written, alarm) = (Instant::now(), Box::pin(sleep(KEEP_ALIVE)));
    let events =
        Events { job, head: envelope.head(), running, trace, begun: false, over: false, written, alarm };
    let chunks = unfold(events, |mut events| async {
        let chunk = events.next().await?;
        Some((Ok::<Bytes, Infallible>(Bytes::from(chunk)), events))
    });
    event_stream(Body::from_stream(chunks))
}

struct Events {
    job: Job,
    /// The fields that all chunks begin with, without the closing brace.
    head: String,
    running: Running,
    trace: Arc<Trace>,
    begun: bool,
    over: bool,
    /// When something was written last, and an alarm that rings no later than `KEEP_ALIVE` after: to wind it for every
    /// token would cost more than the token.
    written: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl Events {
    /// The events that are due, as many as go out at a time.
    async fn next(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        let mut out = String::new();
        if !self.begun {
            self.begun = true;
            self.begin(&mut out);
            if !out.is_empty() {
                return Some(out);
            }
        }
        while out.is_empty() && !self.over {
            let progress = match select(pin!(self.running.next()), self.alarm.as_mut()).await {
                Either::Left((progress, _)) => Some(progress),
                Either::Right(_) => None,
            };
            match progress {
                Some(progress) => self.take(progress, &mut out),
                None => self.rang(&mut out),
            }
        }
        self.written = Instant::now();
        // What has come in the meantime goes out in the same write.
        while !self.over
            && out.len() < AT_A_TIME
            && let Some(progress) = self.running.ready()
        {
            self.take(progress, &mut out);
        }
        Some(out)
    }

    /// Says that the stream lives if nothing else was said for long enough, and winds the alarm.
    fn rang(&mut self, out: &mut String) {
        let quiet = self.written.elapsed();
        if quiet >= KEEP_ALIVE {
            out.push_str(": waiting\n\n");
        }
        let left = KEEP_ALIVE.checked_sub(quiet).unwrap_or(KEEP_ALIVE);
        self.alarm.as_mut().reset(Instant::now() + left);
    }

    /// A chat's choices begin with the role, a completion's with the prompt if it is to be echoed.
    fn begin(&self, out: &mut String) {
        for i in 0..self.running.choices.len() {
            match self.job.kind {
                Kind::Chat => {
                    let delta = r#""delta":{"role":"assistant","content":"","refusal":null}"#;
                    self.chunk(i, delta, &[], None, "", out);
                }
                Kind::Completion if !self.job.echo(i).is_empty() => self.text(i, self.job.echo(i), &[], out),
                Kind::Completion => {}
            }
        }
    }

    fn take(&mut self, progress: Result<Progress, ApiError>, out: &mut String) {
        let progress = match progress {
            Ok(progress) => progress,
            Err(error) => {
                self.trace.failed(&error);
                event(&error.body().to_string(), out);
                self.over = true;
                return;
            }
        };
        // An echo may be without text.
        if !progress.text.is_empty() || progress.finish.is_none() && !progress.log.is_empty() {
            self.text(progress.choice, &progress.text, &progress.log, out);
        }
        if let Some(finish) = progress.finish {
            let nothing = if self.job.kind == Kind::Chat { r#""delta":{}"# } else { r#""text":"""# };
            // Tokens may be left that had no text.
            let log = if progress.text.is_empty() { &progress.log[..] } else { &[] };
            let is_last = self.running.is_finished();
            let extras = if is_last { self.job.extras(&self.running.choices) } else { String::new() };
            self.chunk(progress.choice, nothing, log, Some(finish), &extras, out);
            if is_last {
                self.end(out);
            }
        }
    }

    fn text(&self, choice: usize, text: &str, log: &[Logged], out: &mut String) {
        let text = Value::from(text);
        let content = match self.job.kind {
            Kind::Chat => format!(r#""delta":{{"content":{text}}}"#),
            Kind::Completion => format!(r#""text":{text}"#),
        };
        self.chunk(choice, &content, log, None, "", out);
    }

    /// `content` is the part in which chats and completions differ, `extras` what stands beside the choices.
    fn chunk(
        &self,
        choice: usize,
        content: &str,
        log: &[Logged],
        finish: Option<Finish>,
        extras: &str,
        out: &mut String,
    ) {
        // Written piece by piece: this is done for every token. Writing to a string does not fail.
        let _ = write!(out, r#"data: {},"choices":[{{"index":{choice},{content},"logprobs":"#, self.head);
        match log {
            [] => out.push_str("null"),
            log => out.push_str(&self.job.logprobs(log)),
        }
        let _ = match finish.map(Finish::name) {
            None => write!(out, r#","finish_reason":null}}]"#),
            Some(name) => write!(out, r#","finish_reason":"{name}"}}]"#),
        };
        out.push_str(if self.job.params.include_usage { r#","usage":null"# } else { "" });
        out.push_str(extras);
        out.push_str("}\n\n");
    }

    fn end(&mut self, out: &mut String) {
        self.over = true;
        self.trace.finished(&self.running.choices, self.job.params.best_of);
        if self.job.params.include_usage {
            let usage = self.job.usage(&self.running.choices);
            event(&format!(r#"{},"choices":[],"usage":{usage}}}"#, self.head), out);
        }
        event("[DONE]", out);
    }
}

fn event(data: &str, out: &mut String) {
    out.push_str("data: ");
    out.push_str(data);
    out.push_str("\n\n");
}
