//! `/v1/embeddings`: the mean of a text's last hidden states, of length 1.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use exotherm_engine::handle::{Listener, Update};
use exotherm_engine::{Embedding, Request};
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;

use crate::completions::prompts;
use crate::error::{ApiError, json_response};
use crate::fields::Fields;
use crate::generate::{Prompt, failure};
use crate::model::{Models, ServedModel};
use crate::params::{Leniency, with_warning};
use crate::trace::Trace;

const INPUT: &str = "input";
/// As many as OpenAI allows.
const MOST_INPUTS: usize = 2048;
/// Inputs that are handed to the engine at a time, so that others find a place between them.
const AT_A_TIME: usize = 16;

pub struct Job {
    model: Arc<ServedModel>,
    inputs: Vec<Prompt>,
    as_base64: bool,
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
    leniency.finish(fields, &["dimensions"])?;
    let inputs = prompts(input, &model, false, INPUT, MOST_INPUTS)?;
    Ok(Job { model, inputs, as_base64, ignored: leniency.ignored })
}

impl Job {
    pub async fn answer(self, timeout: Option<Duration>, trace: &Trace) -> Result<Response<Body>, ApiError> {
        trace.model(&self.model.id);
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let at_a_time = AT_A_TIME.min(self.model.handle.most_open()).max(1);
        let mut made = Vec::with_capacity(self.inputs.len());
        for inputs in self.inputs.chunks(at_a_time) {
            made.extend(self.embed(inputs, deadline).await?);
        }
        let tokens: usize = self.inputs.iter().map(|input| input.ids.len()).sum();
        let told = made.iter().enumerate().map(|(i, embedding)| self.told(i, embedding));
        let data: Vec<Value> = told.collect::<Result<_, _>>()?;
        let reply = json!({
            "object": "list",
            "data": data,
            "model": self.model.id,
            "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
        });
        Ok(with_warning(json_response(StatusCode::OK, reply.to_string()), &self.ignored))
    }

    async fn embed(
        &self,
        inputs: &[Prompt],
        deadline: Option<Instant>,
    ) -> Result<Vec<Arc<Embedding>>, ApiError> {
        let made: Vec<Arc<Embedding>> = inputs.iter().map(|_| Arc::default()).collect();
        // Few updates each, so they need no bound.
        let (tell, mut updates) = unbounded_channel();
        let submission = |(input, embedding): (&Prompt, &Arc<Embedding>)| {
            let embedding = Some(Arc::clone(embedding));
            let request = Request { embedding, deadline, ..Request::new(input.ids.clone(), 1) };
            let tell = tell.clone();
            let listener: Listener = Box::new(move |update| tell.send(update).is_ok());
            (request, vec![listener])
        };
        let submissions = inputs.iter().zip(&made).map(submission).collect();
        // Whoever drops this future drops the tickets, too, and with them the requests.
        let _tickets =
            self.model.handle.submit(submissions).map_err(|r| ApiError::from_refusal(&r, INPUT))?;
        drop(tell);
        while let Some(update) = updates.recv().await {
            match update {
                Update::Refused(error) => return Err(ApiError::from_engine(&error, INPUT)),
                Update::Finished { reason, fault, .. } => {
                    failure(reason, fault.as_deref()).map_or(Ok(()), Err)?;
                }
                Update::Accepted | Update::Token { .. } => {}
            }
        }
        Ok(made)
    }

    fn told(&self, index: usize, embedding: &Embedding) -> Result<Value, ApiError> {
        let values = embedding.values().ok_or_else(|| ApiError::internal("no embedding was made"))?;
        let embedding = match self.as_base64 {
            false => json!(values),
            true => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                json!(STANDARD.encode(bytes))
            }
        };
        Ok(json!({ "object": "embedding", "index": index, "embedding": embedding }))
    }
}
