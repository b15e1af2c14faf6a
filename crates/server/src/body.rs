//! Bodies, read within bounds of size and time, and the memory that they and their replies take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time::{Instant, timeout_at};

use crate::error::ApiError;

/// The memory that all bodies together may take, and all that is made of them.
pub struct Room {
    used: AtomicUsize,
    pub most: usize,
}

impl Room {
    pub fn new(most: usize) -> Arc<Room> {
        Arc::new(Room { used: AtomicUsize::new(0), most })
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }
}

/// A request's part of the room, given back when it is dropped.
pub struct Share {
    room: Arc<Room>,
    bytes: usize,
}

impl Share {
    pub fn new(room: &Arc<Room>) -> Share {
        Share { room: Arc::clone(room), bytes: 0 }
    }

    /// One of the same room, with nothing in it.
    pub fn another(&self) -> Share {
        Share::new(&self.room)
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes more, if there is more.
    pub fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let more = |used: usize| used.checked_add(bytes).filter(|&used| used <= self.room.most);
        let grown = self.room.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        grown.map_err(|_| {
            ApiError::unavailable(
                "overloaded",
                "large requests and replies take all the memory there is for them",
            )
        })?;
        self.bytes += bytes;
        Ok(())
    }

    /// Counts what is taken now, which has bounds of its own: others are refused for it, not this one.
    pub fn set(&mut self, bytes: usize) {
        self.room.used.fetch_add(bytes, Ordering::AcqRel);
        self.room.used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// What is made of a body, and how much memory that takes.
pub trait Holds {
    fn held_bytes(&self) -> usize;
}

/// A body and its share of the room.
pub struct Received {
    pub bytes: Vec<u8>,
    pub share: Share,
}

/// Reads a request's body; the client has `patience` to send it. What is left of a body that is refused is read when the
/// client has been told so.
pub async fn read(
    request: Request,
    most: usize,
    patience: Duration,
    room: &Arc<Room>,
) -> Result<Received, ApiError> {
    let mut body = request.into_body();
    let declared = body.size_hint().exact();
    if declared.is_some_and(|bytes| bytes > most as u64) {
        return Err(too_large(most));
    }
    let mut received = Received { bytes: Vec::new(), share: Share::new(room) };
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
            return Err(too_large(most));
        }
        received.share.grow(data.len())?;
        received.bytes.extend_from_slice(data);
    }
}

fn too_large(most: usize) -> ApiError {
    let message = format!("the body is larger than {most} bytes, the most that is read");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}
