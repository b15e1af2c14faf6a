//! Bodies, read within bounds of size and time, and the memory that they and their replies take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::app::Config;
use crate::error::ApiError;
use crate::wire::Pace;

/// Bytes from which on a body is large: reading such takes seconds, and they take turns, so that others find a thread.
pub const LARGE: usize = 64 << 10;

/// How long who waits for room waits before it looks again.
const TURN: Duration = Duration::from_millis(5);

/// What a body that is small, for all that is known, begins with.
const BEGINNING: usize = 4 << 10;

/// What takes of the room. Each has its own, so that none can keep the others out, however slowly clients send and read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Large,
    Reply,
    Small,
}

/// The memory that all bodies together may take, and all that is made of them.
pub struct Room {
    most: usize,
    /// Of each part.
    used: [AtomicUsize; 3],
    /// The turns of bodies that wait, of each kind by themselves.
    large: Semaphore,
    small: Semaphore,
}

impl Room {
    pub fn new(most: usize) -> Arc<Room> {
        let (large, small) = (Semaphore::new(1), Semaphore::new(1));
        Arc::new(Room { used: Default::default(), most, large, small })
    }

    /// By all parts.
    pub fn used(&self) -> usize {
        self.used.iter().map(|used| used.load(Ordering::Acquire)).sum()
    }

    /// Bytes up to which a body is small: there is room for it among small ones.
    fn largest_small(&self) -> usize {
        LARGE.min(self.most(Part::Small))
    }

    fn used_by(&self, part: Part) -> &AtomicUsize {
        &self.used[part as usize]
    }

    /// How much this part may take.
    pub fn most(&self, part: Part) -> usize {
        match part {
            Part::Large | Part::Reply => self.most / 8 * 3,
            Part::Small => self.most / 4,
        }
    }
}

/// A request's part of the room, given back when it is dropped.
pub struct Share {
    room: Arc<Room>,
    part: Part,
    bytes: usize,
}

impl Share {
    pub fn new(room: &Arc<Room>, part: Part) -> Share {
        Share { room: Arc::clone(room), part, bytes: 0 }
    }

    /// One of the same room, with nothing in it.
    pub fn another(&self) -> Share {
        Share::new(&self.room, self.part)
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much all of its kind may take.
    pub fn most(&self) -> usize {
        self.room.most(self.part)
    }

    /// Takes more, if there is more. What could never be had is refused for good, not put off.
    pub fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let most = self.room.most(self.part);
        let all = self.bytes.saturating_add(bytes);
        if bytes > 0 && all > most {
            let message = format!("this takes {all} bytes of memory, the server has {most} for it");
            return Err(ApiError::bad("too_much_memory", message));
        }
        if self.try_grow(bytes) { Ok(()) } else { Err(overloaded()) }
    }

    fn try_grow(&mut self, bytes: usize) -> bool {
        let most = self.room.most(self.part);
        let more = |used: usize| used.checked_add(bytes).filter(|&used| used <= most);
        // Nothing is always there.
        let used = self.room.used_by(self.part);
        let grown = bytes == 0 || used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok();
        self.bytes += if grown { bytes } else { 0 };
        grown
    }

    /// Takes more as soon as it is there; who came before goes first.
    async fn wait_for(&mut self, bytes: usize) {
        let room = Arc::clone(&self.room);
        let turn = if self.part == Part::Large { &room.large } else { &room.small };
        // It is never closed.
        let _turn = turn.acquire().await;
        while !self.try_grow(bytes) {
            sleep(TURN).await;
        }
    }

    /// Counts what is taken now, which has bounds of its own: others are refused for it, not this one.
    pub fn set(&mut self, bytes: usize) {
        let used = self.room.used_by(self.part);
        used.fetch_add(bytes, Ordering::AcqRel);
        used.fetch_sub(self.bytes, Ordering::AcqRel);
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.used_by(self.part).fetch_sub(self.bytes, Ordering::AcqRel);
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

impl Received {
    /// All the room for a body of so many bytes, before any of them is read. Who waits for it holds none.
    async fn with_room(bytes: usize, patience: Duration, room: &Arc<Room>) -> Result<Received, ApiError> {
        let part = if bytes > room.largest_small() { Part::Large } else { Part::Small };
        let mut share = Share::new(room, part);
        timeout(patience, share.wait_for(bytes)).await.map_err(|_| overloaded())?;
        Ok(Received { bytes: Vec::with_capacity(bytes), share })
    }
}

/// Reads a request's body, for which the client has so much time, and less if it is silent in the middle of it. What is left
/// of a body that is refused is read when the client has been told so.
pub async fn read(request: Request, config: &Config, room: &Arc<Room>) -> Result<Received, ApiError> {
    let most = config.max_body_bytes.min(room.most(Part::Large));
    let mut body = request.into_body();
    let declared = body.size_hint().exact();
    if declared.is_some_and(|bytes| bytes > most as u64) {
        return Err(too_large(most));
    }
    // Small ones have room for their beginnings at first, so that they are many who send slowly before they are in others' way.
    // One whose length is not told beforehand is small until it turns out to be large.
    let small = room.largest_small();
    let declared = declared.map(|bytes| bytes as usize);
    let expected =
        declared.filter(|&bytes| bytes > small).unwrap_or(BEGINNING.min(declared.unwrap_or(most)).min(most));
    let mut received = Received::with_room(expected, config.body_timeout, room).await?;
    let mut deadline = Instant::now() + config.body_timeout;
    let mut pace = Pace::new(config.body_silence, config.least_rate);
    loop {
        let asked = Instant::now();
        let patience = deadline.min(asked + pace.left());
        let frame = timeout_at(patience, body.frame()).await.map_err(|_| {
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not come in time")
                .with_header("connection", "close")
        })?;
        let Some(frame) = frame else { return Ok(received) };
        let frame = frame.map_err(|e| ApiError::bad("broken_body", format!("the body broke off: {e}")))?;
        let Some(data) = frame.data_ref() else { continue };
        pace.waited(asked.elapsed(), data.len());
        if data.len() > most - received.bytes.len() {
            return Err(too_large(most));
        }
        if data.len() > received.share.bytes() - received.bytes.len() {
            let needed = received.bytes.len() + data.len();
            let untold = if needed <= small { small } else { most };
            let next = declared.unwrap_or(untold).min(most);
            // Its part goes first: with it many that wait would keep all room from one another.
            let Received { bytes, share } = received;
            drop(share);
            received = Received::with_room(next, config.body_timeout, room).await?;
            received.bytes.extend_from_slice(&bytes);
            deadline = Instant::now() + config.body_timeout;
        }
        received.bytes.extend_from_slice(data);
    }
}

fn overloaded() -> ApiError {
    let message = "large requests and replies take all the memory there is for them";
    ApiError::unavailable("overloaded", message)
}

fn too_large(most: usize) -> ApiError {
    let message = format!("the body is larger than {most} bytes, the most that is read");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_full_leaves_the_others_theirs() {
        let parts = [Part::Large, Part::Reply, Part::Small];
        for full in parts {
            let room = Room::new(8 << 20);
            let mut shares: Vec<Share> = parts.map(|part| Share::new(&room, part)).into();
            let filled = &mut shares[full as usize];
            // What has bounds of its own may take more than there is.
            filled.set(3 * room.most(full));
            assert_eq!(filled.grow(1).map_err(|error| error.code), Err(Some("too_much_memory")));
            assert!(Share::new(&room, full).grow(1).is_err(), "{full:?}");
            for part in parts.into_iter().filter(|&part| part != full) {
                assert!(shares[part as usize].grow(room.most(part)).is_ok(), "{full:?} keeps {part:?} out");
                assert!(Share::new(&room, part).grow(1).is_err(), "{part:?} is full");
            }
            drop(shares);
            assert_eq!(room.used(), 0);
        }
        assert!(parts.iter().map(|&part| Room::new(8 << 20).most(part)).sum::<usize>() <= 8 << 20);
    }
}
