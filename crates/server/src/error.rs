//! Refusals, in the shape that OpenAI's clients read.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use exotherm_engine::handle::Refusal;
use exotherm_engine::{EngineError, SamplingError};
use exotherm_tokenizer::TokenizerError;
use serde_json::{Value, json};

#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The parameter that is at fault, as a path into the request's JSON.
    pub param: Option<String>,
    pub code: Option<&'static str>,
    /// Whether it is worth trying again soon.
    pub retry: bool,
    pub header: Option<(&'static str, &'static str)>,
}

/// The error that a reply tells, for whoever counts them.
#[derive(Clone)]
pub struct Told(pub ApiError);

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            message: message.into(),
            param: None,
            code: Some(code),
            retry: false,
            header: None,
        }
    }

    /// A request that cannot be done as asked.
    pub fn bad(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// A parameter that cannot be as it is.
    pub fn param(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::bad(code, message).about(param)
    }

    pub fn about(mut self, param: impl Into<String>) -> ApiError {
        self.param = Some(param.into());
        self
    }

    pub fn with_header(mut self, name: &'static str, value: &'static str) -> ApiError {
        self.header = Some((name, value));
        self
    }

    pub fn unavailable(code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { retry: true, ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message) }
    }

    fn queue_full(message: String) -> ApiError {
        ApiError { retry: true, ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message) }
    }

    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    pub fn body(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code,
        } })
    }

    pub fn response(&self) -> Response<Body> {
        let mut response = json_response(self.status, self.body().to_string());
        let headers = response.headers_mut();
        if self.retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some((name, value)) = self.header {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response.extensions_mut().insert(Told(self.clone()));
        response
    }

    /// What the engine refuses about a request whose prompt stands in the parameter `prompt`.
    pub fn from_engine(error: &EngineError, prompt: &str) -> ApiError {
        let message = error.to_string();
        let too_long = |message| ApiError::param(prompt, "context_length_exceeded", message);
        match *error {
            EngineError::TooLong { prompt: tokens, max_tokens, ctx } => too_long(format!(
                "{prompt} has {tokens} tokens, {max_tokens} more may come; the context is {ctx}"
            )),
            EngineError::TooManyBlocks { prompt: tokens, max_tokens, need, blocks } => too_long(format!(
                "{prompt} has {tokens} tokens, {max_tokens} more may come; that takes {need} blocks of memory, there are \
                 {blocks}"
            )),
            EngineError::EmptyPrompt | EngineError::Token { .. } => {
                ApiError::param(prompt, "invalid_value", message)
            }
            EngineError::QueueFull { .. } => ApiError::queue_full(message),
            EngineError::Sampling(SamplingError::Value { name, .. }) => {
                ApiError::param(name, "invalid_value", message)
            }
            EngineError::Sampling(SamplingError::BiasToken { .. }) => {
                ApiError::param("logit_bias", "invalid_value", message)
            }
            EngineError::Choices { .. } => ApiError::param("n", "invalid_value", message),
            EngineError::Priority { .. } => ApiError::param("priority", "invalid_value", message),
            EngineError::Logprobs { .. } => ApiError::param("logprobs", "invalid_value", message),
            _ => ApiError::internal(message),
        }
    }

    /// `prompt` says in which parameter the prompt of one of the requests stood.
    pub fn from_refusal(refusal: &Refusal, prompt: impl Fn(usize) -> String) -> ApiError {
        match refusal {
            Refusal::Request { index, error } => ApiError::from_engine(error, &prompt(*index)),
            Refusal::Full { .. } => ApiError::queue_full(refusal.to_string()),
            Refusal::Draining => ApiError::unavailable("shutting_down", refusal.to_string()),
            Refusal::Gone => ApiError::unavailable("engine_stopped", refusal.to_string()),
        }
    }

    /// A text that cannot be put into tokens, or a conversation that the template refuses.
    pub fn from_tokenizer(error: &TokenizerError, param: impl Into<String>) -> ApiError {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        ApiError::param(param, "invalid_value", message)
    }
}

pub fn json_response(status: StatusCode, body: impl Into<Cow<'static, str>>) -> Response<Body> {
    let body = match body.into() {
        Cow::Borrowed(text) => Body::from(text),
        Cow::Owned(text) => Body::from(text),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
