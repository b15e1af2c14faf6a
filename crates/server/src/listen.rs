//! Connections: accepted within a bound, watched for clients that stall, and ended in good order.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use futures_util::future::{Either, select};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::app::App;
use crate::error::ApiError;

/// How often the end of what goes on is looked for.
const TICK: Duration = Duration::from_millis(5);
/// How long connections without a request may take to close, and cut-off requests to tell so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves until the app is told to stop, then until nothing goes on or the deadline.
pub async fn serve(app: Arc<App>, listener: TcpListener, router: Router) {
    accept(&app, &listener, &router).await;
    drop(listener);
    for model in app.loaded().iter().flat_map(|models| &models.0) {
        model.handle.drain();
    }
    let deadline = Instant::now() + app.config.drain;
    settle(&app, deadline).await;
    for model in app.loaded().iter().flat_map(|models| &models.0) {
        model.handle.cancel_all();
    }
    settle(&app, Instant::now() + LAST_WORDS).await;
}

/// Waits until all connections are closed, or only such are left as have no request.
async fn settle(app: &App, deadline: Instant) {
    let mut quiet_since = None;
    while app.counters.connections.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
        let quiet = app.counters.in_flight() == 0;
        let since = *quiet_since.get_or_insert_with(Instant::now);
        if !quiet {
            quiet_since = None;
        } else if since.elapsed() > LAST_WORDS {
            return;
        }
        sleep(TICK).await;
    }
}

async fn accept(app: &Arc<App>, listener: &TcpListener, router: &Router) {
    let mut stopping = pin!(app.stopping());
    loop {
        let accepted = match select(pin!(listener.accept()), stopping.as_mut()).await {
            Either::Left((accepted, _)) => accepted,
            Either::Right(_) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = Connection::begin(app);
                if app.counters.connections.load(Ordering::Acquire) > app.config.max_connections {
                    tokio::spawn(turn_away(stream, connection));
                } else {
                    tokio::spawn(connection.serve(stream, router.clone()));
                }
            }
            // Out of file handles, or a client that left already: neither ends the server.
            Err(_) => sleep(TICK).await,
        }
    }
}

/// Counted as long as it lives.
struct Connection {
    app: Arc<App>,
}

impl Connection {
    fn begin(app: &Arc<App>) -> Connection {
        app.counters.connections.fetch_add(1, Ordering::AcqRel);
        Connection { app: Arc::clone(app) }
    }

    async fn serve(self, stream: TcpStream, router: Router) {
        // Tokens are small and must not wait for more.
        let _ = stream.set_nodelay(true);
        let config = &self.app.config;
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_header_size(config.max_header_bytes)
            .max_buf_size(config.max_header_bytes.max(64 << 10));
        let io = TokioIo::new(Impatient { stream, patience: config.write_timeout, stalled: None });
        let connection = pin!(builder.serve_connection(io, TowerToHyperService::new(router)));
        // What breaks off a connection concerns its client alone, who knows.
        match select(connection, pin!(self.app.stopping())).await {
            Either::Left(_) => {}
            Either::Right((_, mut connection)) => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.app.counters.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One connection too many is told so.
async fn turn_away(stream: TcpStream, connection: Connection) {
    let error = ApiError::unavailable("too_many_connections", "too many connections are open");
    let body = error.body().to_string();
    let reply = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let give_up = Instant::now() + LAST_WORDS;
    // The request is read, if it comes soon: closed with unread bytes, the reply could be lost.
    if !matches!(select(pin!(stream.readable()), pin!(sleep_until(give_up))).await, Either::Left((Ok(()), _)))
    {
        return;
    }
    let mut scratch = [0; 4096];
    while stream.try_read(&mut scratch).is_ok_and(|bytes| bytes == scratch.len()) {}
    // It fits into any socket's buffer; who does not take it has gone.
    let _ = stream.try_write(reply.as_bytes());
    drop(connection);
}

/// A connection that breaks when its client takes nothing in for too long.
struct Impatient {
    stream: TcpStream,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
