//! A model as the server knows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use exotherm_engine::handle::{Listener, Refusal, Ticket};
use exotherm_engine::stats::EngineStats;
use exotherm_engine::{EngineHandle, Request};
use exotherm_tokenizer::{Message, Tokenizer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::ApiError;
use crate::generate::Waiting;
use crate::post::Post;

/// What a receipt tells of how a model is run.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub kv_type: String,
    /// What computes, with which instructions, on how many threads.
    pub backend: String,
    pub level: String,
    pub threads: usize,
}

pub struct ServedModel {
    pub id: String,
    pub handle: EngineHandle,
    pub tokenizer: Arc<Tokenizer>,
    /// Tokens that end an answer.
    pub stop_tokens: Vec<u32>,
    /// What the engine says on its way to who asked.
    pub(crate) post: Arc<Post<Waiting>>,
    facts: Facts,
    /// Requests that were refused before the engine had them.
    pub refused: AtomicU64,
    created_s: u64,
    template_hash: Option<String>,
}

impl ServedModel {
    pub fn new(
        id: String,
        handle: EngineHandle,
        tokenizer: Tokenizer,
        stop_tokens: Vec<u32>,
        facts: Facts,
    ) -> ServedModel {
        let template_hash = match tokenizer.chat_template() {
            Ok(Some(template)) => Some(hex(&Sha256::digest(template.source().as_bytes()))),
            _ => None,
        };
        let tokenizer = Arc::new(tokenizer);
        let (created_s, refused) = (now_s(), AtomicU64::new(0));
        let post = Arc::<Post<Waiting>>::default();
        let rung = Arc::clone(&post);
        let is_first = handle.on_told(move || rung.ring());
        assert!(is_first, "an engine is served under one name");
        ServedModel { id, handle, tokenizer, stop_tokens, post, facts, refused, created_s, template_hash }
    }

    /// Hands requests to the engine, all of them or none, and counts those that it does not take.
    pub fn submit(&self, requests: Vec<(Request, Vec<Listener>)>) -> Result<Vec<Ticket>, Refusal> {
        let count: usize = requests.iter().map(|(_, listeners)| listeners.len()).sum();
        let taken = self.handle.submit(requests);
        if taken.is_err() {
            self.refused.fetch_add(count as u64, Ordering::Relaxed);
        }
        taken
    }

    pub fn stats(&self) -> EngineStats {
        let mut stats = self.handle.stats();
        stats.outcomes.refused += self.refused.load(Ordering::Relaxed);
        stats
    }

    /// Refuses a text that cannot fit into the context however it is put into tokens, before that is done.
    pub fn check_length(&self, bytes: usize, param: &str) -> Result<(), ApiError> {
        let (ctx, longest) = (self.handle.ctx(), self.tokenizer.longest_piece());
        if bytes <= ctx.saturating_mul(longest) {
            return Ok(());
        }
        let message = format!(
            "{param} has {bytes} bytes of text or more; the context is {ctx} tokens, and a token is {longest} bytes at most"
        );
        Err(ApiError::param(param, "context_length_exceeded", message))
    }

    /// An entry of `/v1/models`.
    pub fn listed(&self) -> Value {
        json!({
            "id": self.id,
            "object": "model",
            "created": self.created_s,
            "owned_by": "exotherm",
            "max_model_len": self.handle.ctx(),
            "has_chat_template": self.template_hash.is_some(),
        })
    }

    /// What the answer was made with, as far as it does not depend on the request.
    pub fn receipt(&self) -> Value {
        json!({
            "engine": concat!("exotherm ", env!("CARGO_PKG_VERSION")),
            "model": self.id,
            "template_sha256": self.template_hash,
            "kv_type": self.facts.kv_type,
            "kernels": {
                "backend": self.facts.backend, "level": self.facts.level, "threads": self.facts.threads,
            },
        })
    }

    pub fn fingerprint(&self) -> String {
        format!("exotherm-{}-{}-{}", env!("CARGO_PKG_VERSION"), self.facts.backend, self.facts.level)
    }

    /// The tokens of a conversation up to where the model is to answer.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, ApiError> {
        const PARAM: &str = "messages";
        let template = self.tokenizer.chat_template().map_err(|e| ApiError::from_tokenizer(&e, PARAM))?;
        let template = template.ok_or_else(|| {
            let message = format!("the model {:?} has no chat template; use /v1/completions", self.id);
            ApiError::param("model", "no_chat_template", message)
        })?;
        let piece = |id: Option<u32>| {
            id.and_then(|id| self.tokenizer.piece(id)).map(|p| String::from_utf8_lossy(p).into_owned())
        };
        let extra =
            json!({ "bos_token": piece(self.tokenizer.bos()), "eos_token": piece(self.tokenizer.eos()) });
        let encoded = self.tokenizer.encode_chat(template, messages, &extra);
        encoded.map_err(|e| ApiError::from_tokenizer(&e, PARAM))
    }
}

/// The models of a server; where there is one alone, it answers requests that name none.
pub struct Models(pub Vec<Arc<ServedModel>>);

impl Models {
    pub fn find(&self, id: &str) -> Result<&Arc<ServedModel>, ApiError> {
        self.0.iter().find(|model| model.id == id).ok_or_else(|| {
            let known: Vec<&str> = self.0.iter().map(|model| model.id.as_str()).collect();
            let message = format!(
                "there is no model {:?}; there are {}",
                crate::fields::shortened(id),
                known.join(", ")
            );
            ApiError::new(axum::http::StatusCode::NOT_FOUND, "model_not_found", message).about("model")
        })
    }

    /// The model that a request names; where there is only one, it need not.
    pub fn choose(&self, id: Option<&str>) -> Result<&Arc<ServedModel>, ApiError> {
        match (id, self.0.as_slice()) {
            (Some(id), _) => self.find(id),
            (None, [only]) => Ok(only),
            (None, _) => {
                Err(ApiError::param("model", "missing_required_parameter", "say which model is to answer"))
            }
        }
    }
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
