//! A connection's bytes: clients that take them in too slowly are noticed, and what a reply holds goes when it is written.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::body::Share;
use crate::metrics::InFlight;

/// How often it is looked whether a client is gone that nobody reads from.
const GLANCE: Duration = Duration::from_millis(50);

/// What the replies of a connection hold until their last byte is written or their client is gone.
#[derive(Default)]
pub struct Unwritten {
    held: Mutex<Vec<Holding>>,
    /// Requests that came and are not answered in full.
    open: AtomicUsize,
}

/// Of one reply; dropped when that is over.
pub struct Holding {
    pub _in_flight: InFlight,
    pub _shares: Vec<Share>,
}

impl Unwritten {
    pub fn begin(&self) {
        self.open.fetch_add(1, Ordering::AcqRel);
    }

    /// All of the reply has been made; what it holds is kept until it is written, too.
    pub fn made(&self, holding: Holding) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(holding);
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// Everything that was made is written, or will never be.
    pub fn let_go(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn is_answering(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }
}

/// Ends when the client is gone while it is being answered. Usually reading tells; but nobody reads on where a client sent
/// more than its request.
pub async fn gone(stream: &TcpStream, unwritten: &Unwritten) {
    loop {
        sleep(GLANCE).await;
        if !unwritten.is_answering() {
            continue;
        }
        let ready = stream.ready(Interest::READABLE).now_or_never();
        if ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed())) {
            return;
        }
    }
}

pub struct Wire {
    stream: Arc<TcpStream>,
    pace: Pace,
    unwritten: Arc<Unwritten>,
}

impl Wire {
    pub fn new(stream: Arc<TcpStream>, pace: Pace, unwritten: Arc<Unwritten>) -> Wire {
        Wire { stream, pace, unwritten }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    buf.advance(read?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl Wire {
    fn poll_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.stream.poll_write_ready(cx)?.is_pending() {
                ready!(self.pace.poll_over(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.pace.took(*written.as_ref().unwrap_or(&0));
                    return Poll::Ready(written);
                }
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// It is called when nothing is left to be written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unwritten.let_go();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.stream).shutdown(Shutdown::Write))
    }
}

/// How long a client may keep the server waiting: for so long at a time, and all in all longer only as it takes bytes in.
pub struct Pace {
    patience: Duration,
    /// Bytes that earn a second.
    least_rate: usize,
    left: Duration,
    stalled: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Pace {
    pub fn new(patience: Duration, least_rate: usize) -> Pace {
        Pace { patience, least_rate: least_rate.max(1), left: patience, stalled: None }
    }

    /// Ready when patience is over.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.left;
        let (_, over) = self.stalled.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
        over.as_mut().poll(cx)
    }

    fn took(&mut self, bytes: usize) {
        let stalled = self.stalled.take();
        self.waited(stalled.map_or(Duration::ZERO, |(since, _)| since.elapsed()), bytes);
    }

    /// How long it may go on like this.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// So many bytes came after so much time.
    pub fn waited(&mut self, time: Duration, bytes: usize) {
        self.left = self.left.saturating_sub(time);
        let earned = Duration::from_secs_f64(bytes as f64 / self.least_rate as f64);
        self.left = self.left.saturating_add(earned).min(self.patience);
    }
}
