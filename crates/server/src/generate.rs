//! Answers while they are made: from the engine's tokens to text, choice by choice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use exotherm_engine::handle::{Listener, Ticket, Update};
use exotherm_engine::{FinishReason, Request, RequestStats, TokenLogprob, TokenLogprobs};
use exotherm_tokenizer::{StopMatcher, Stream, Tokenizer};
use tokio::sync::mpsc::{Receiver, channel};

use crate::body::{Holds, Share};
use crate::completions::entry_name;
use crate::error::ApiError;
use crate::logprobs::LOGGED_BYTES;
use crate::params::Params;
use crate::post::Unsent;

/// Tokens that may wait to be written, for each choice of a request; a client that lets more pile up has gone to sleep, and
/// its request is cancelled.
const MOST_UNREAD: usize = 4_096;

/// Tokens of a request that may wait however much memory others take.
const FEW_UNREAD: usize = 64;

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
    /// Whether that of the token which ends the answer, too, as who asks about a prompt expects it: there a token is
    /// generated only to have something after the prompt.
    tells_end: bool,
    log: Vec<Logged>,
    logprob_sum: f64,
    /// Characters that came, and those that were shown.
    came: usize,
    shown: usize,
}

/// A token and how likely it was, if that is known.
pub struct Logged {
    pub token: u32,
    /// Characters before it, of the answer and of the prompt if that is told.
    pub offset: usize,
    /// Nothing is known of a prompt's first token.
    pub logprobs: Option<Box<TokenLogprobs>>,
}

impl Logged {
    /// Numbers that are told of it.
    pub fn numbers(&self) -> usize {
        self.logprobs.as_ref().map_or(1, |known| 1 + known.top.len())
    }
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
    updates: Receiver<Waiting>,
    /// Whether there was no room for more of them.
    overrun: Arc<AtomicBool>,
    pub choices: Vec<Choice>,
    prompts: Arc<[Prompt]>,
    tokenizer: Arc<Tokenizer>,
    /// The parameter in which the prompts stood.
    prompt: &'static str,
}

/// What was said of a choice and not read yet, and its share of the memory that there is for that.
pub struct Waiting {
    choice: usize,
    update: Update,
    _share: Option<Share>,
}

impl Waiting {
    /// `None` where so many wait for the same request that there is no memory left for more. What a reply that is told as a
    /// whole takes has been counted.
    fn new(choice: usize, update: Update, others: usize, room: Option<&Share>) -> Option<Waiting> {
        let mut share = room.map(Share::another);
        if let (Update::Token { logprobs: Some(logprobs), .. }, Some(share)) = (&update, &mut share) {
            let top = logprobs.top.len() * size_of::<TokenLogprob>();
            let bytes = size_of::<Waiting>() + size_of::<TokenLogprobs>() + top;
            // Who reads is not cut off because others do not.
            if others < FEW_UNREAD { share.set(bytes) } else { share.grow(bytes).ok()? }
        }
        Some(Waiting { choice, update, _share: share })
    }
}

impl Running {
    /// Hands the prompts to the engine, `n` choices each, and waits until it has taken them. What a stream has not read takes
    /// its share of `room`.
    pub async fn start(
        params: &Params,
        prompts: Arc<[Prompt]>,
        prompt: &'static str,
        timeout: Option<Duration>,
        room: &Share,
    ) -> Result<Running, ApiError> {
        let count = prompts.len().saturating_mul(params.best_of);
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let (tell, updates) = channel(count.saturating_mul(MOST_UNREAD));
        let overrun = Arc::<AtomicBool>::default();
        let listener = |i: usize| -> Listener {
            let (tell, overrun, post) = (tell.clone(), Arc::clone(&overrun), Arc::clone(&params.model.post));
            let room = params.logprobs.filter(|_| params.stream).map(|_| room.another());
            Box::new(move |update| {
                let others = tell.max_capacity() - tell.capacity();
                let sent = match Waiting::new(i, update, others, room.as_ref()) {
                    Some(waiting) => post.send(&tell, waiting),
                    None => Err(Unsent::Full),
                };
                overrun.fetch_or(sent == Err(Unsent::Full), Ordering::AcqRel);
                sent.is_ok()
            })
        };
        let submission = |(i, prompt)| {
            let first = i * params.best_of;
            (
                request(params, prompt, deadline, most_logged(room)),
                (first..first + params.best_of).map(listener).collect(),
            )
        };
        let submissions = prompts.iter().enumerate().map(submission).collect();
        let tickets = params.model.submit(submissions);
        let name = |i| entry_name(prompt, i, prompts.len());
        let tickets = tickets.map_err(|refusal| ApiError::from_refusal(&refusal, name))?;
        let before = |i: usize| if params.continues { &prompts[i / params.best_of].ids[..] } else { &[] };
        let choice = |(i, ticket)| Choice::new(params, before(i), ticket);
        let choices = tickets.into_iter().enumerate().map(choice).collect();
        let tokenizer = Arc::clone(&params.model.tokenizer);
        let mut running = Running { updates, overrun, choices, prompts, tokenizer, prompt };
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

    fn take(&mut self, waiting: Waiting) -> Result<Progress, ApiError> {
        let (i, per_prompt) = (waiting.choice, self.choices.len() / self.prompts.len().max(1));
        let choice = &mut self.choices[i];
        let text = match waiting.update {
            Update::Accepted => {
                choice.is_accepted = true;
                String::new()
            }
            Update::Refused(error) => return Err(ApiError::from_engine(&error, self.prompt)),
            Update::Prompt(logprobs) => {
                let prompt = &self.prompts[i / per_prompt];
                let log = choice.begin_with(&self.tokenizer, prompt, &logprobs);
                return Ok(Progress { choice: i, text: prompt.echo.clone(), log, finish: None });
            }
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

/// Log-probabilities that a reply may hold which is told as a whole, where there is memory for them.
const MOST_LOGGED: usize = 100_000;

fn most_logged(room: &Share) -> usize {
    MOST_LOGGED.min(room.most() / LOGGED_BYTES)
}

/// How many log-probabilities are asked for: those of the prompts, if they are wanted, and of as many tokens of the answers
/// as the client said, where it did and the reply is told as a whole. Refused where they would take more memory than is
/// planned for.
pub fn asked_logged(params: &Params, prompts: &[Prompt], room: &Share) -> Result<usize, ApiError> {
    let Some(top) = params.logprobs else { return Ok(0) };
    let logged = |prompt: &Prompt| {
        let answer = if params.stream { 0 } else { params.max_tokens.unwrap_or(0) };
        answer.saturating_add(if params.logs_prompt { prompt.ids.len() } else { 0 })
    };
    let tokens = prompts.iter().map(logged).fold(0, usize::saturating_add);
    let logged = tokens.saturating_mul(params.best_of).saturating_mul(usize::from(top) + 1);
    check_logged(logged, room)?;
    Ok(logged)
}

/// Refuses more log-probabilities in one reply than there is memory for.
pub fn check_logged(logged: usize, room: &Share) -> Result<(), ApiError> {
    let most = most_logged(room);
    if logged <= most {
        return Ok(());
    }
    let message = format!(
        "logprobs would tell {logged} numbers at once or more, the most is {most}; fewer of them, a smaller \
         max_tokens or n, or \"stream\": true help, and less of a prompt where it is told, too"
    );
    Err(ApiError::param("logprobs", "invalid_value", message))
}

/// Tokens that an answer may have. Where the client does not say, it ends before its log-probabilities are more than one
/// reply may hold.
fn most_tokens(params: &Params, prompt: &Prompt, most_logged: usize) -> usize {
    params.max_tokens.unwrap_or_else(|| {
        let room = params.model.handle.ctx().saturating_sub(prompt.ids.len());
        let told = match params.logprobs.filter(|_| !params.stream) {
            Some(top) => most_logged / (usize::from(top) + 1) / params.best_of.max(1),
            None => usize::MAX,
        };
        room.min(told).max(1)
    })
}

fn request(params: &Params, prompt: &Prompt, deadline: Option<Instant>, most_logged: usize) -> Request {
    Request {
        sampling: params.sampling.clone(),
        // The best of several are those whose tokens were the likeliest.
        logprobs: params.logprobs.or((params.best_of > params.n).then_some(0)),
        prompt_logprobs: params.logprobs.filter(|_| params.logs_prompt),
        stop_tokens: if params.ignore_eos { Vec::new() } else { params.model.stop_tokens.clone() },
        deadline,
        priority: params.priority,
        ..Request::new(prompt.ids.clone(), most_tokens(params, prompt, most_logged))
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
            tells_end: params.logs_prompt,
            log: Vec::new(),
            logprob_sum: 0.0,
            came: 0,
            shown: 0,
        }
    }

    /// How likely its tokens were on average, the one that ended it included: an empty answer is as likely as its end.
    pub fn mean_logprob(&self) -> f64 {
        // The text may have ended earlier, with a stop string.
        let end = self.stats.stop_logprob.filter(|_| !self.matcher.stopped());
        let count = self.tokens + usize::from(end.is_some());
        (self.logprob_sum + end.map_or(0.0, f64::from)) / count.max(1) as f64
    }

    /// The prompt's tokens, where the answer begins with them.
    fn begin_with(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &Prompt,
        logprobs: &[TokenLogprobs],
    ) -> Vec<Logged> {
        self.came = prompt.echo.chars().count();
        self.shown = self.came;
        let known = std::iter::once(None).chain(logprobs.iter().cloned().map(Box::new).map(Some));
        let placed = prompt.ids.iter().zip(offsets(tokenizer, prompt)).zip(known);
        placed.map(|((&token, offset), logprobs)| Logged { token, offset, logprobs }).collect()
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
                self.log.push(Logged { token, offset: self.came, logprobs: Some(logprobs) });
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
        if let (FinishReason::Stop(token), Some(logprob), true) =
            (reason, self.stats.stop_logprob, self.tells_end && !self.matcher.stopped())
        {
            let logprobs = Some(Box::new(TokenLogprobs { logprob, top: Vec::new() }));
            self.log.push(Logged { token, offset: self.came, logprobs });
        }
        let is_full = !self.matcher.stopped() && reason == FinishReason::Length;
        self.finish = Some(if is_full { Finish::Length } else { Finish::Stop });
        Ok(rest)
    }
}

/// Characters of the echo before each of the prompt's tokens.
fn offsets(tokenizer: &Tokenizer, prompt: &Prompt) -> impl Iterator<Item = usize> {
    let (mut stream, mut rest, mut offset) = (Stream::new(tokenizer, false), prompt.echo.as_str(), 0);
    prompt.ids.iter().map(move |&token| {
        let before = offset;
        let written = match tokenizer.piece(token).and_then(|piece| std::str::from_utf8(piece).ok()) {
            // Control tokens are in the text or were put before it.
            Some(piece) if tokenizer.is_special(token) => rest.starts_with(piece).then(|| piece.to_string()),
            _ => stream.push(token).ok(),
        };
        let mut left = rest.chars();
        offset += left.by_ref().take(written.unwrap_or_default().chars().count()).count();
        rest = left.as_str();
        before
    })
}

fn too_slow() -> ApiError {
    let message = format!(
        "the reply was not read: more than {MOST_UNREAD} tokens of an answer waited to be sent, or more than there is memory for"
    );
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
