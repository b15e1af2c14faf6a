//! `/v1/embeddings`: the mean of a text's last hidden states, of length 1.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use exotherm_engine::handle::{Listener, Refusal, Ticket, Update};
use exotherm_engine::{Embedding, FinishReason, Request};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::sleep;

use crate::body::{Holds, Share};
use crate::completions::{entry_name, prompts};
use crate::error::{ApiError, json_response};
use crate::fields::Fields;
use crate::generate::{Prompt, failure};
use crate::model::{Models, ServedModel};
use crate::params::{Leniency, priority, with_warning};
use crate::reply;
use crate::trace::Trace;

const INPUT: &str = "input";
/// As many as OpenAI allows.
const MOST_INPUTS: usize = 2048;
/// Inputs that are handed to the engine at a time, so that others find a place between them.
const AT_A_TIME: usize = 16;

/// What comes after the embeddings, about.
const LAST_BYTES: usize = 1 << 10;

/// How long a request that was begun waits before it looks for places again.
const TURN: Duration = Duration::from_millis(5);

/// Inputs that the engine works on. Whoever drops this drops the tickets, too, and with them the requests.
struct Handed {
    made: Vec<Arc<Embedding>>,
    _tickets: Vec<Ticket>,
    updates: UnboundedReceiver<Update>,
}

pub struct Job {
    model: Arc<ServedModel>,
    inputs: Vec<Prompt>,
    as_base64: bool,
    priority: i32,
    ignored: Vec<String>,
}

pub fn read(body: &[u8], models: &Models, lenient: bool) -> Result<Job, ApiError> {
    let mut fields = Fields::parse(body)?;
    let mut leniency = Leniency::new(lenient);
    let model = fields.string("model")?;
    let model = Arc::clone(models.choose(model.as_deref())?);
    let input = fields.take(INPUT);
    let input = fields.need(INPUT, input)?;
    let as_base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let shown = crate::fields::shortened(other);
            let message = format!("encoding_format can be float or base64, not {shown:?}");
            return Err(ApiError::param("encoding_format", "invalid_value", message));
        }
    };
    fields.string("user")?;
    let priority = priority(&mut fields)?;
    leniency.finish(fields, &["dimensions"])?;
    let inputs = prompts(input, &model, false, INPUT, MOST_INPUTS)?;
    Ok(Job { model, inputs, as_base64, priority, ignored: leniency.ignored })
}

impl Holds for Job {
    fn held_bytes(&self) -> usize {
        self.inputs.iter().map(Holds::held_bytes).sum()
    }
}

impl Job {
    pub async fn answer(self, timeout: Option<Duration>, trace: &Trace) -> Result<Response<Body>, ApiError> {
        trace.model(&self.model.id);
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        // Written while they are made: as text they are what the reply takes, and nothing else is kept of them.
        let mut reply = String::from(r#"{"object":"list","data":["#);
        let (mut share, mut done) = (trace.share(), 0);
        let (begin, mut queued) = (Instant::now(), None);
        while done < self.inputs.len() {
            let (embeddings, waited) = self.embed(done, queued.is_some(), deadline).await?;
            queued.get_or_insert(waited);
            for embedding in embeddings {
                self.tell(done, &embedding, &mut reply)?;
                done += 1;
            }
            let each = reply.len() / done;
            self.check_size(each, trace.most_held())?;
            // Grown as needed, it would take up to twice what it is. Some are longer than those so far, and more comes last.
            let rest = (self.inputs.len() - done) * (each + each / 8) + LAST_BYTES;
            let all = (reply.len() + rest).min(trace.most_held());
            share.grow(all.saturating_sub(share.bytes()))?;
            reply.reserve_exact(all.saturating_sub(reply.len()));
            grow_to(&mut share, &mut reply)?;
        }
        let tokens: usize = self.inputs.iter().map(|input| input.ids.len()).sum();
        let timings = reply::embedding_timings(tokens, queued.unwrap_or_default(), begin.elapsed());
        let model = Value::from(self.model.id.as_str());
        let usage = format!(r#"{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}"#);
        reply.push_str(&format!(r#"],"model":{model},"usage":{usage},"timings":{timings}}}"#));
        trace.embedded(tokens);
        trace.hold(share);
        Ok(with_warning(json_response(StatusCode::OK, reply), &self.ignored))
    }

    /// What can never be told at once is refused for good, not put off.
    fn check_size(&self, bytes_each: usize, most: usize) -> Result<(), ApiError> {
        let (count, fit) = (self.inputs.len(), most / bytes_each.max(1));
        if count <= fit {
            return Ok(());
        }
        let message = format!(
            "an embedding takes about {bytes_each} bytes of the reply; {fit} of them can be told at a time, not {count}"
        );
        Err(ApiError::param(INPUT, "invalid_value", message))
    }

    /// Embeds some of the inputs from `first` on; gives the time along that the first of them waited.
    async fn embed(
        &self,
        first: usize,
        is_begun: bool,
        deadline: Option<Instant>,
    ) -> Result<(Vec<Arc<Embedding>>, Duration), ApiError> {
        let Handed { made, _tickets, mut updates } = self.hand_over(first, is_begun, deadline).await?;
        let mut queued = Duration::MAX;
        while let Some(update) = updates.recv().await {
            match update {
                Update::Refused(error) => return Err(ApiError::from_engine(&error, INPUT)),
                Update::Finished { reason, fault, stats } => {
                    failure(reason, fault.as_deref()).map_or(Ok(()), Err)?;
                    queued = queued.min(stats.queued);
                }
                Update::Accepted | Update::Prompt(_) | Update::Token { .. } => {}
            }
        }
        Ok((made, queued))
    }

    /// Hands as many inputs to the engine as there are places for, up to `AT_A_TIME`. A request that was begun waits for its
    /// turn instead of being put off.
    async fn hand_over(
        &self,
        first: usize,
        is_begun: bool,
        deadline: Option<Instant>,
    ) -> Result<Handed, ApiError> {
        loop {
            let handle = &self.model.handle;
            // Where there is no room at all, one that has not begun is to hear that.
            let room = handle.most_open().saturating_sub(handle.open()).max(usize::from(!is_begun));
            let count = AT_A_TIME.min(self.inputs.len() - first).min(room);
            if count > 0 {
                let inputs = &self.inputs[first..first + count];
                let made: Vec<Arc<Embedding>> = inputs.iter().map(|_| Arc::default()).collect();
                // Few updates each, so they need no bound.
                let (tell, updates) = unbounded_channel();
                let submission = |(input, embedding): (&Prompt, &Arc<Embedding>)| {
                    let embedding = Some(Arc::clone(embedding));
                    let priority = self.priority;
                    let request =
                        Request { embedding, deadline, priority, ..Request::new(input.ids.clone(), 0) };
                    let tell = tell.clone();
                    let listener: Listener = Box::new(move |update| tell.send(update).is_ok());
                    (request, vec![listener])
                };
                match self.model.submit(inputs.iter().zip(&made).map(submission).collect()) {
                    Ok(tickets) => return Ok(Handed { made, _tickets: tickets, updates }),
                    // Others were faster.
                    Err(Refusal::Full { .. }) if is_begun || count > 1 => {}
                    Err(refusal) => {
                        let name = |i| entry_name(INPUT, first + i, self.inputs.len());
                        return Err(ApiError::from_refusal(&refusal, name));
                    }
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                failure(FinishReason::Deadline, None).map_or(Ok(()), Err)?;
            }
            sleep(TURN).await;
        }
    }

    fn tell(&self, index: usize, embedding: &Embedding, out: &mut String) -> Result<(), ApiError> {
        let values = embedding.values().ok_or_else(|| ApiError::internal("no embedding was made"))?;
        let comma = if index > 0 { "," } else { "" };
        out.push_str(&format!(r#"{comma}{{"object":"embedding","index":{index},"embedding":"#));
        if self.as_base64 {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            out.push('"');
            STANDARD.encode_string(bytes, out);
            out.push('"');
        } else {
            let mut before = '[';
            for value in values {
                // Finite floats are written as JSON has them. Writing to a string does not fail.
                let _ = write!(out, "{before}{value:?}");
                before = ',';
            }
            out.push(']');
        }
        out.push('}');
        Ok(())
    }
}

/// Counts what the reply takes so far.
fn grow_to(share: &mut Share, reply: &mut String) -> Result<(), ApiError> {
    let more = reply.capacity().saturating_sub(share.bytes());
    share.grow(more)
}
