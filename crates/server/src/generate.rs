//! Answers while they are made: from the engine's tokens to text, choice by choice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use exotherm_engine::handle::{Listener, Ticket, Update};
use exotherm_engine::{FinishReason, Request, RequestStats, TokenLogprobs};
use exotherm_tokenizer::{StopMatcher, Stream, Tokenizer};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, channel};

use crate::body::Holds;
use crate::error::ApiError;
use crate::params::Params;

/// Tokens that may wait to be written, for each choice of a request; a client that lets more pile up has gone to sleep, and
/// its request is cancelled.
const MOST_UNREAD: usize = 4_096;

pub struct Prompt {
    pub ids: Vec<u32>,
    /// The prompt as text, where the answer is to begin with it.
    pub echo: String,
}

impl Holds for Prompt {
    fn held_bytes(&self) -> usize {
        size_of::<Prompt>() + self.ids.len() * size_of::<u32>() + self.echo.len()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finish {
    Stop,
    Length,
}

impl Finish {
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// One answer of a request.
pub struct Choice {
    stream: Stream<Arc<Tokenizer>>,
    matcher: StopMatcher,
    ticket: Option<Ticket>,
    is_accepted: bool,
    /// Tokens up to the stop string or the end.
    pub tokens: usize,
    pub stats: RequestStats,
    pub finish: Option<Finish>,
    /// Whether the client wants to see the log-probabilities, and those it has not seen.
    shows_logprobs: bool,
    log: Vec<Logged>,
    logprob_sum: f64,
    /// Characters that came, and those that were shown.
    came: usize,
    shown: usize,
}

/// A token and how likely it was.
pub struct Logged {
    pub token: u32,
    /// Characters of the answer before it.
    pub offset: usize,
    pub logprobs: Box<TokenLogprobs>,
}

/// What came of an update.
pub struct Progress {
    pub choice: usize,
    pub text: String,
    /// The tokens of the text, where they were asked for.
    pub log: Vec<Logged>,
    pub finish: Option<Finish>,
}

/// A request that the engine works on. Dropping it cancels what is not finished.
pub struct Running {
    updates: Receiver<(usize, Update)>,
    /// Whether there was no room for more of them.
    overrun: Arc<AtomicBool>,
    pub choices: Vec<Choice>,
    /// The parameter in which the prompts stood.
    prompt: &'static str,
}

impl Running {
    /// Hands the prompts to the engine, `n` choices each, and waits until it has taken them.
    pub async fn start(
        params: &Params,
        prompts: &[Prompt],
        prompt: &'static str,
        timeout: Option<Duration>,
    ) -> Result<Running, ApiError> {
        let count = prompts.len().saturating_mul(params.best_of);
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let (tell, updates) = channel(count.saturating_mul(MOST_UNREAD));
        let overrun = Arc::<AtomicBool>::default();
        let listener = |i: usize| -> Listener {
            let (tell, overrun) = (tell.clone(), Arc::clone(&overrun));
            Box::new(move |update| {
                let sent = tell.try_send((i, update));
                overrun.fetch_or(matches!(sent, Err(TrySendError::Full(_))), Ordering::AcqRel);
                sent.is_ok()
            })
        };
        let submission = |(i, prompt)| {
            let first = i * params.best_of;
            (request(params, prompt, deadline), (first..first + params.best_of).map(listener).collect())
        };
        let submissions = prompts.iter().enumerate().map(submission).collect();
        let tickets = params.model.submit(submissions);
        let tickets = tickets.map_err(|refusal| ApiError::from_refusal(&refusal, prompt))?;
        let before = |i: usize| if params.continues { &prompts[i / params.best_of].ids[..] } else { &[] };
        let choice = |(i, ticket)| Choice::new(params, before(i), ticket);
        let choices = tickets.into_iter().enumerate().map(choice).collect();
        let mut running = Running { updates, overrun, choices, prompt };
        while !running.choices.iter().all(|choice| choice.is_accepted) {
            running.next().await?;
        }
        Ok(running)
    }

    pub fn is_finished(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// The next thing that happens.
    pub async fn next(&mut self) -> Result<Progress, ApiError> {
        let received = self.updates.recv().await;
        let update = received.ok_or_else(|| {
            // Listeners are dropped early only by an engine that is gone, or when nobody read what they said.
            let is_overrun = self.overrun.load(Ordering::Acquire);
            if is_overrun {
                too_slow()
            } else {
                ApiError::unavailable("engine_stopped", "the engine has stopped")
            }
        })?;
        self.take(update)
    }

    /// What has happened already, without waiting.
    pub fn ready(&mut self) -> Option<Result<Progress, ApiError>> {
        self.updates.try_recv().ok().map(|update| self.take(update))
    }

    fn take(&mut self, (i, update): (usize, Update)) -> Result<Progress, ApiError> {
        let choice = &mut self.choices[i];
        let text = match update {
            Update::Accepted => {
                choice.is_accepted = true;
                String::new()
            }
            Update::Refused(error) => return Err(ApiError::from_engine(&error, self.prompt)),
            Update::Token { token, logprobs, .. } => choice.push(token, logprobs)?,
            Update::Finished { reason, stats, fault } => {
                choice.stats = stats;
                if reason == FinishReason::Cancelled && self.overrun.load(Ordering::Acquire) {
                    return Err(too_slow());
                }
                choice.end(reason, fault.as_deref())?
            }
        };
        let log = choice.told();
        Ok(Progress { choice: i, text, log, finish: choice.finish })
    }
}

/// Log-probabilities that a reply may hold which is told as a whole.
const MOST_LOGGED: usize = 100_000;

/// How many log-probabilities a reply that is told as a whole may hold; refused where they would take more memory than is
/// planned for.
pub fn most_logged(params: &Params, prompts: &[Prompt]) -> Result<usize, ApiError> {
    let Some(top) = params.logprobs.filter(|_| !params.stream) else { return Ok(0) };
    let tokens = prompts.iter().map(|prompt| most_tokens(params, prompt)).fold(0, usize::saturating_add);
    let logged = tokens.saturating_mul(params.best_of).saturating_mul(usize::from(top) + 1);
    if logged <= MOST_LOGGED {
        return Ok(logged);
    }
    let message = format!(
        "logprobs would tell up to {logged} numbers at once, the most is {MOST_LOGGED}; fewer of them, a smaller \
         max_tokens or n, or \"stream\": true help"
    );
    Err(ApiError::param("logprobs", "invalid_value", message))
}

/// Tokens that an answer may have.
fn most_tokens(params: &Params, prompt: &Prompt) -> usize {
    params.max_tokens.unwrap_or_else(|| params.model.handle.ctx().saturating_sub(prompt.ids.len()).max(1))
}

fn request(params: &Params, prompt: &Prompt, deadline: Option<Instant>) -> Request {
    Request {
        sampling: params.sampling.clone(),
        // The best of several are those whose tokens were the likeliest.
        logprobs: params.logprobs.or((params.best_of > params.n).then_some(0)),
        stop_tokens: if params.ignore_eos { Vec::new() } else { params.model.stop_tokens.clone() },
        deadline,
        priority: params.priority,
        ..Request::new(prompt.ids.clone(), most_tokens(params, prompt))
    }
}

impl Choice {
    /// `before` are the tokens whose text the answer goes on with.
    fn new(params: &Params, before: &[u32], ticket: Ticket) -> Choice {
        Choice {
            stream: Stream::after(before, Arc::clone(&params.model.tokenizer), false),
            matcher: StopMatcher::new(params.stops.iter().cloned()),
            ticket: Some(ticket),
            is_accepted: false,
            tokens: 0,
            stats: RequestStats::default(),
            finish: None,
            shows_logprobs: params.logprobs.is_some(),
            log: Vec::new(),
            logprob_sum: 0.0,
            came: 0,
            shown: 0,
        }
    }

    /// How likely its tokens were on average.
    pub fn mean_logprob(&self) -> f64 {
        self.logprob_sum / self.tokens.max(1) as f64
    }

    /// The text that can be shown now.
    fn push(&mut self, token: u32, logprobs: Option<Box<TokenLogprobs>>) -> Result<String, ApiError> {
        if self.matcher.stopped() {
            return Ok(String::new());
        }
        self.tokens += 1;
        let text = match self.stream.push(token) {
            Ok(text) => text,
            // No other token can be chosen.
            Err(error) => return Err(ApiError::internal(error.to_string())),
        };
        if let Some(logprobs) = logprobs {
            self.logprob_sum += f64::from(logprobs.logprob);
            if self.shows_logprobs {
                self.log.push(Logged { token, offset: self.came, logprobs });
            }
        }
        self.came += text.chars().count();
        let shown = self.matcher.push(&text);
        self.shown += shown.chars().count();
        if self.matcher.stopped() {
            if let Some(ticket) = self.ticket.take() {
                ticket.is_enough();
            }
            // Of tokens that are nothing but stop string nothing is told.
            self.log.retain(|logged| logged.offset < self.shown);
        }
        Ok(shown)
    }

    /// The tokens, of those not told yet, whose text is shown: what is held back may turn out to be a stop string. At the
    /// end tokens without any text are told, too.
    fn told(&mut self) -> Vec<Logged> {
        let is_over = self.finish.is_some();
        let count = self.log.iter().take_while(|logged| is_over || logged.offset < self.shown).count();
        self.log.drain(..count).collect()
    }

    fn end(&mut self, reason: FinishReason, fault: Option<&str>) -> Result<String, ApiError> {
        self.ticket = None;
        let rest = self.stream.finish();
        self.came += rest.chars().count();
        let rest = self.matcher.push(&rest) + &self.matcher.finish();
        self.shown += rest.chars().count();
        if self.matcher.stopped() {
            self.log.retain(|logged| logged.offset < self.shown);
        }
        if !self.matcher.stopped()
            && let Some(error) = failure(reason, fault)
        {
            return Err(error);
        }
        let is_full = !self.matcher.stopped() && reason == FinishReason::Length;
        self.finish = Some(if is_full { Finish::Length } else { Finish::Stop });
        Ok(rest)
    }
}

fn too_slow() -> ApiError {
    let message =
        format!("the reply was not read: more than {MOST_UNREAD} tokens of an answer waited to be sent");
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "client_too_slow", message)
}

/// What is wrong with an end that is not the answer's own.
pub fn failure(reason: FinishReason, fault: Option<&str>) -> Option<ApiError> {
    match reason {
        FinishReason::Stop(_) | FinishReason::Length => None,
        FinishReason::Deadline => {
            let message = "the answer took longer than the server gives it";
            Some(ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message))
        }
        FinishReason::Failed => {
            Some(ApiError::internal(fault.unwrap_or("the engine failed over this request")))
        }
        FinishReason::Cancelled => {
            let message = "the request was cut off: the server shuts down";
            Some(ApiError::unavailable("shutting_down", message))
        }
    }
}
