//! Bodies, read within bounds of size and time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time::{Instant, timeout_at};

use crate::error::ApiError;

/// Bytes of a body that is too large which are read and dropped, so that the client hears why before it is cut off.
const MOST_DROPPED: u64 = 64 << 20;
const DROPPING: Duration = Duration::from_secs(10);

/// The memory that all bodies together may take.
pub struct Room {
    used: AtomicUsize,
    most: usize,
}

impl Room {
    pub fn new(most: usize) -> Arc<Room> {
        Arc::new(Room { used: AtomicUsize::new(0), most })
    }

    fn take(&self, bytes: usize) -> Result<(), ApiError> {
        let grow = |used: usize| used.checked_add(bytes).filter(|&used| used <= self.most);
        let grown = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow);
        grown.map(drop).map_err(|_| ApiError::unavailable("overloaded", "too many large requests at a time"))
    }
}

/// A body and its share of the room.
pub struct Received {
    pub bytes: Vec<u8>,
    room: Arc<Room>,
    taken: usize,
}

impl Received {
    fn push(&mut self, data: &[u8]) -> Result<(), ApiError> {
        self.room.take(data.len())?;
        self.taken += data.len();
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.taken, Ordering::AcqRel);
    }
}

/// Reads a request's body; the client has `patience` to send it.
pub async fn read(
    request: Request,
    most: usize,
    patience: Duration,
    room: &Arc<Room>,
) -> Result<Received, ApiError> {
    let waits_to_be_told = request.headers().contains_key(header::EXPECT);
    let mut body = request.into_body();
    let declared = body.size_hint().exact();
    if declared.is_some_and(|bytes| bytes > most as u64) {
        // A client that waits to be asked for the body never sends it.
        if !waits_to_be_told {
            drop_rest(body).await;
        }
        return Err(too_large(most));
    }
    let mut received = Received { bytes: Vec::new(), room: Arc::clone(room), taken: 0 };
    let deadline = Instant::now() + patience;
    loop {
        let frame = timeout_at(deadline, body.frame()).await.map_err(|_| {
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not come in time")
                .with_header("connection", "close")
        })?;
        let Some(frame) = frame else { return Ok(received) };
        let frame = frame.map_err(|e| ApiError::bad("broken_body", format!("the body broke off: {e}")))?;
        let Some(data) = frame.data_ref() else { continue };
        if data.len() > most - received.bytes.len() {
            drop(received);
            drop_rest(body).await;
            return Err(too_large(most));
        }
        received.push(data)?;
    }
}

fn too_large(most: usize) -> ApiError {
    let message = format!("the body is larger than {most} bytes, the most that is read");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}

/// What a client still sends of a body that is not wanted: if the connection were closed on it, the reply could be lost.
async fn drop_rest(mut body: Body) {
    let deadline = Instant::now() + DROPPING;
    let mut dropped = 0;
    while dropped < MOST_DROPPED
        && let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await
    {
        dropped += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
}
