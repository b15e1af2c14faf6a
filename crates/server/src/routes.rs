//! What is where, and what happens before and after every request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use axum::{Extension, Router};
use hyper::body::{Frame, SizeHint};
use serde_json::{Value, json};
use tracing::{Instrument, info_span};

use crate::answer::Job;
use crate::app::App;
use crate::body::{Holds, LARGE, Received};
use crate::error::{ApiError, Told, json_response};
use crate::model::Models;
use crate::params::with_warning;
use crate::trace::Trace;
use crate::wire::Unwritten;
use crate::{body, chat, completions, describe, embeddings, metrics, spans, text};

const PAGE: &str = include_str!("page.html");

/// Paths that are told apart in counts and lines; all others are one.
const ROUTES: &[&str] = &[
    "/",
    "/detokenize",
    "/health",
    "/metrics",
    "/openapi.json",
    "/ready",
    "/tokenize",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
];
/// Paths that tell no secrets and are open without a key.
const OPEN: &[&str] = &["/", "/health", "/openapi.json", "/ready"];

type Shared = State<Arc<App>>;
type Reply = Response<Body>;

pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(prometheus))
        .route("/openapi.json", get(openapi))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(plain_completions))
        .route("/v1/embeddings", post(embeddings))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// Names the request, checks who asks, and follows the reply to its last byte.
async fn around(State(app): Shared, mut request: Request, next: Next) -> Reply {
    let route = route_of(request.uri().path());
    let unwritten = request.extensions_mut().remove::<Arc<Unwritten>>().unwrap_or_default();
    let trace = Trace::begin(request.method().clone(), route, &app, unwritten);
    spans::join(&trace.span, request.headers());
    let origin = request.headers().get(header::ORIGIN).filter(|origin| app.origins.allows(origin)).cloned();
    let mut response = match admit(&app, route, &request) {
        Err(error) => error.response(),
        Ok(()) if origin.is_some() && is_preflight(&request) => preflight(request.headers()),
        Ok(()) => {
            request.extensions_mut().insert(Arc::clone(&trace));
            next.run(request).instrument(trace.span.clone()).await
        }
    };
    trace.status(response.status());
    if let Some(Told(error)) = response.extensions_mut().remove() {
        trace.failed(&error);
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&trace.id) {
        headers.insert("x-request-id", id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin {
        allow_origin(headers, origin);
    }
    response.map(|body| Body::new(Followed { body, _trace: trace }))
}

fn route_of(path: &str) -> &'static str {
    let known = ROUTES.iter().find(|route| **route == path);
    let of_models = path.strip_prefix("/v1/models/").map(|_| &"/v1/models/{id}");
    known.or(of_models).copied().unwrap_or("other")
}

fn admit(app: &App, route: &str, request: &Request) -> Result<(), ApiError> {
    app.origins.check(request.headers())?;
    // A browser sends no key along when it asks whether it may.
    if OPEN.contains(&route) || is_preflight(request) { Ok(()) } else { app.keys.check(request.headers()) }
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// An origin that is allowed may send any header: the official clients send a dozen of their own.
fn preflight(asked: &HeaderMap) -> Reply {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    let usual = HeaderValue::from_static("authorization, content-type");
    let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned().unwrap_or(usual);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

fn allow_origin(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    let told = HeaderValue::from_static("retry-after, x-exotherm-warning, x-request-id");
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, told);
}

/// A reply's body; with its end the request is over.
struct Followed {
    body: Body,
    _trace: Arc<Trace>,
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn no_such_path(request: Request) -> Reply {
    let path = crate::fields::shortened(request.uri().path());
    let message = format!("there is nothing at {path}; /openapi.json lists what there is");
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message).response()
}

async fn no_such_method(request: Request) -> Reply {
    let message = format!("{} is not for this path", request.method());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message).response()
}

async fn page() -> Reply {
    // The page is one file: it may load nothing, and nobody may frame it.
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                          connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                          frame-ancestors 'none'";
    let mut response = Response::new(Body::from(PAGE));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

async fn openapi(State(app): Shared) -> Reply {
    json_response(StatusCode::OK, describe::document(app.loaded()))
}

async fn health(State(app): Shared) -> Reply {
    match app.loaded() {
        Some(_) if !app.is_sound() => {
            json_response(StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"engine stopped"}"#)
        }
        Some(_) if app.is_restoring() => {
            json_response(StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"reloading"}"#)
        }
        Some(_) => json_response(StatusCode::OK, r#"{"status":"ok"}"#),
        None => json_response(StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"loading"}"#),
    }
}

/// Whether new requests are welcome.
async fn ready(State(app): Shared) -> Reply {
    match app.models().map(drop).and_then(|()| app.check_open()) {
        Err(error) => error.response(),
        Ok(()) if !app.is_sound() => {
            ApiError::unavailable("engine_stopped", "the engine has stopped").response()
        }
        Ok(()) if app.is_restoring() => {
            ApiError::unavailable("reloading", "a device has failed, and its model is loaded again")
                .response()
        }
        Ok(()) => json_response(StatusCode::OK, r#"{"status":"ready"}"#),
    }
}

async fn prometheus(State(app): Shared) -> Reply {
    let mut response = Response::new(Body::from(metrics::render(&app)));
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

async fn models(State(app): Shared) -> Reply {
    let listed = app.models().map(|models| {
        let data: Vec<Value> = models.0.iter().map(|model| model.listed()).collect();
        json!({ "object": "list", "data": data })
    });
    reply(listed)
}

async fn model(State(app): Shared, id: Result<Path<String>, PathRejection>) -> Reply {
    let id = id.map_err(|error| ApiError::bad("invalid_path", error.body_text()));
    reply(
        id.and_then(|Path(id)| app.models().and_then(|models| models.find(&id).map(|model| model.listed()))),
    )
}

async fn tokenize(State(app): Shared, trace: Extension<Arc<Trace>>, request: Request) -> Reply {
    said(read(&app, &trace, request, text::tokenize).await)
}

async fn detokenize(State(app): Shared, trace: Extension<Arc<Trace>>, request: Request) -> Reply {
    said(read(&app, &trace, request, text::detokenize).await)
}

async fn chat_completions(State(app): Shared, trace: Extension<Arc<Trace>>, request: Request) -> Reply {
    answer(&app, trace.0, request, chat::read).await
}

async fn plain_completions(State(app): Shared, trace: Extension<Arc<Trace>>, request: Request) -> Reply {
    answer(&app, trace.0, request, completions::read).await
}

async fn embeddings(State(app): Shared, trace: Extension<Arc<Trace>>, request: Request) -> Reply {
    let answered = match read(&app, &trace, request, embeddings::read).await {
        Ok(job) => job.answer(app.config.request_timeout, &trace.0).await,
        Err(error) => Err(error),
    };
    replied(answered)
}

async fn answer(app: &Arc<App>, trace: Arc<Trace>, request: Request, of: Reader<Job>) -> Reply {
    let answered = match read(app, &trace, request, of).await {
        Ok(job) => job.answer(app.config.request_timeout, Arc::clone(&trace)).await,
        Err(error) => Err(error),
    };
    replied(answered)
}

fn replied(answered: Result<Reply, ApiError>) -> Reply {
    answered.unwrap_or_else(|error| error.response())
}

type Reader<T> = fn(&[u8], &Models, bool) -> Result<T, ApiError>;

/// Set when nobody waits for a request any more.
#[derive(Default)]
struct Abandoned(Arc<AtomicBool>);

impl Drop for Abandoned {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Takes a request in. Parsing and tokenizing may take long and go to threads of their own, but not for a client that has
/// gone before they began.
async fn read<T: Holds + Send + 'static>(
    app: &Arc<App>,
    trace: &Trace,
    request: Request,
    of: Reader<T>,
) -> Result<T, ApiError> {
    let received = body::read(request, &app.config, &app.room).await?;
    app.check_open()?;
    let turn = match received.bytes.len() > LARGE {
        // It is never closed.
        true => Arc::clone(&app.large).acquire_owned().await.ok(),
        false => None,
    };
    let app = Arc::clone(app);
    let abandoned = Abandoned::default();
    let is_abandoned = Arc::clone(&abandoned.0);
    let span = info_span!(target: exotherm_observe::REQUESTS, "read");
    let work = move || {
        let _turn = turn;
        let Received { bytes, mut share } = received;
        if is_abandoned.load(Ordering::Acquire) {
            return Err(ApiError::internal("nobody waits for this any more"));
        }
        let made = span.in_scope(|| of(&bytes, app.models()?, app.config.lenient))?;
        // From now on it is this that is held, until the reply is written.
        share.set(made.held_bytes());
        Ok((made, share))
    };
    let done = tokio::task::spawn_blocking(work).await;
    let (made, share) =
        done.map_err(|_| ApiError::internal("the request could not be read: something panicked"))??;
    trace.hold(share);
    Ok(made)
}

fn said(result: Result<text::Said, ApiError>) -> Reply {
    let told = |said: text::Said| with_warning(json_response(StatusCode::OK, said.text), &said.ignored);
    replied(result.map(told))
}

fn reply(result: Result<Value, ApiError>) -> Reply {
    match result {
        Ok(value) => json_response(StatusCode::OK, value.to_string()),
        Err(error) => error.response(),
    }
}
