//! From a request that was read to its reply, whole or in a stream.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;

use crate::body::{Holds, Share};
use crate::error::{ApiError, json_response};
use crate::generate::{Choice, Logged, Progress, Prompt, Running, asked_logged, check_logged};
use crate::ids;
use crate::logprobs::{self, LOGGED_BYTES};
use crate::model::now_s;
use crate::params::{Params, with_warning};
use crate::reply::{self, Envelope};
use crate::stream;
use crate::trace::Trace;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Chat,
    Completion,
}

impl Kind {
    /// The parameter that holds what is to be answered.
    fn prompt(self) -> &'static str {
        match self {
            Kind::Chat => "messages",
            Kind::Completion => "prompt",
        }
    }

    fn object(self, stream: bool) -> &'static str {
        match (self, stream) {
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Completion, _) => "text_completion",
        }
    }
}

/// What is to be done for a request, with all its texts in tokens.
pub struct Job {
    pub params: Params,
    pub kind: Kind,
    pub prompts: Arc<[Prompt]>,
    /// Parameters that were left out of account, where that is allowed.
    pub ignored: Vec<String>,
}

impl Job {
    fn envelope(&self) -> Envelope {
        let prefix = if self.kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        Envelope {
            id: ids::unique(prefix),
            object: self.kind.object(self.params.stream),
            created_s: now_s(),
            model: self.params.model.id.clone(),
            fingerprint: self.params.model.fingerprint(),
        }
    }

    /// What can never be done at a time is refused for good, not put off.
    fn check_size(&self) -> Result<(), ApiError> {
        let Params { n, best_of, .. } = self.params;
        let (prompts, most) = (self.prompts.len(), self.params.model.handle.most_open());
        let asked = prompts.saturating_mul(best_of);
        if asked <= most {
            return Ok(());
        }
        let message =
            format!("{prompts} prompts with {best_of} answers each are {asked}, {most} are the most");
        let param = match best_of > most {
            true if n < best_of => "best_of",
            true => "n",
            false => self.kind.prompt(),
        };
        Err(ApiError::param(param, "invalid_value", message))
    }

    /// What a choice's text begins with, unless that comes with its log-probabilities.
    pub fn echo(&self, choice: usize) -> &str {
        let echo = &self.prompts[choice / self.params.best_of].echo;
        if self.params.logs_prompt { "" } else { echo }
    }

    /// Makes the answer, or begins to, if it is to come in a stream.
    pub async fn answer(
        self,
        timeout: Option<Duration>,
        trace: Arc<Trace>,
    ) -> Result<Response<Body>, ApiError> {
        self.check_size()?;
        trace.model(&self.params.model.id);
        // What is told at once of likelihoods is the only thing that can be large. What is asked for has its room from the
        // start, what nobody foresaw takes it as it comes.
        let mut share = trace.share();
        share.grow(asked_logged(&self.params, &self.prompts, &share)?.saturating_mul(LOGGED_BYTES))?;
        let (prompts, name) = (Arc::clone(&self.prompts), self.kind.prompt());
        let running = Running::start(&self.params, prompts, name, timeout, &share).await?;
        let envelope = self.envelope();
        let ignored = self.ignored.clone();
        let response = match self.params.stream {
            true => {
                trace.hold(share);
                stream::response(self, envelope, running, trace)
            }
            false => {
                let text = self.whole(&envelope, running, &trace, &mut share).await?;
                share.set(text.len());
                trace.hold(share);
                json_response(StatusCode::OK, text)
            }
        };
        Ok(with_warning(response, &ignored))
    }

    async fn whole(
        self,
        envelope: &Envelope,
        mut running: Running,
        trace: &Trace,
        share: &mut Share,
    ) -> Result<String, ApiError> {
        let mut logged = 0;
        let count = running.choices.len();
        let mut said: Vec<(String, Vec<Logged>)> =
            (0..count).map(|i| (self.echo(i).to_string(), Vec::new())).collect();
        while !running.is_finished() {
            let Progress { choice, text, log, .. } = running.next().await?;
            logged += log.iter().map(Logged::numbers).sum::<usize>();
            check_logged(logged, share)?;
            share.grow((logged * LOGGED_BYTES).saturating_sub(share.bytes()))?;
            said[choice].0.push_str(&text);
            said[choice].1.extend(log);
        }
        trace.finished(&running.choices, self.params.best_of);
        let mut reply = envelope.head() + r#","choices":["#;
        for (index, i) in self.best(&running.choices).into_iter().enumerate() {
            if index > 0 {
                reply.push(',');
            }
            let (text, log) = std::mem::take(&mut said[i]);
            reply.push_str(&self.choice(index, text, &log, &running.choices[i]));
        }
        let usage = self.usage(&running.choices);
        Ok(format!(r#"{reply}],"usage":{usage}{}}}"#, self.extras(&running.choices)))
    }

    /// Which choices are told, in their order: of each prompt the likeliest, if more were made than are wanted.
    fn best(&self, choices: &[Choice]) -> Vec<usize> {
        let Params { n, best_of, .. } = self.params;
        let of_prompt = |first: usize| {
            let mut made: Vec<usize> = (first..first + best_of).collect();
            if n < best_of {
                made.sort_by(|&a, &b| choices[b].mean_logprob().total_cmp(&choices[a].mean_logprob()));
                made.truncate(n);
            }
            made
        };
        (0..choices.len()).step_by(best_of).flat_map(of_prompt).collect()
    }

    fn choice(&self, index: usize, text: String, log: &[Logged], choice: &Choice) -> String {
        let finish = Value::from(choice.finish.map(|finish| finish.name()));
        let (text, logprobs) = (Value::from(text), self.logprobs(log));
        let content = match self.kind {
            Kind::Chat => format!(r#""message":{{"role":"assistant","content":{text},"refusal":null}}"#),
            Kind::Completion => format!(r#""text":{text}"#),
        };
        format!(r#"{{"index":{index},{content},"logprobs":{logprobs},"finish_reason":{finish}}}"#)
    }

    /// What is told of these tokens: nothing, if nothing was asked for.
    pub fn logprobs(&self, log: &[Logged]) -> String {
        let tokenizer = &self.params.model.tokenizer;
        match (self.params.logprobs, self.kind) {
            (None, _) => "null".into(),
            (Some(_), Kind::Chat) => logprobs::of_chat(tokenizer, log),
            (Some(_), Kind::Completion) => logprobs::of_completion(tokenizer, log),
        }
    }

    pub fn usage(&self, choices: &[Choice]) -> Value {
        reply::usage(&self.prompts, choices, self.params.best_of)
    }

    /// What OpenAI's replies do not have, as fields after others.
    pub fn extras(&self, choices: &[Choice]) -> String {
        let timings = reply::timings(choices, self.params.best_of);
        match self.params.receipt {
            true => format!(r#","timings":{timings},"receipt":{}"#, reply::receipt(&self.params, choices)),
            false => format!(r#","timings":{timings}"#),
        }
    }
}

impl Holds for Job {
    fn held_bytes(&self) -> usize {
        let stops: usize = self.params.stops.iter().map(String::len).sum();
        stops + self.prompts.iter().map(Holds::held_bytes).sum::<usize>()
    }
}

/// The headers of a stream of events.
pub fn event_stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that would gather the events must not.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
