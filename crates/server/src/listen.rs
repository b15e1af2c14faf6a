//! Connections: accepted within a bound, watched for clients that stall, and ended in good order.
//!
//! What is no HTTP at all, or a head that is too large, never gets to be a request: hyper answers it itself, with 400 or
//! 431 and nothing more.

use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use futures_util::future::{Either, select};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};

use crate::app::App;
use crate::error::ApiError;
use crate::wire::{Pace, Unwritten, Wire, gone};

/// How often the end of what goes on is looked for.
const TICK: Duration = Duration::from_millis(5);
/// How long connections without a request may take to close, and cut-off requests to tell so.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What is still read from a client after its last reply, for how long in all, and for how long while nothing comes.
const MOST_LINGERED: usize = 64 << 20;
const LINGER: Duration = Duration::from_secs(10);
const LINGER_SILENT: Duration = Duration::from_secs(2);
/// Connections at a time that are told that there are too many; more of them are just closed.
const MOST_TURNED_AWAY: usize = 64;

/// Serves until the app is told to stop, then until nothing goes on or the deadline.
pub async fn serve(app: Arc<App>, listener: TcpListener, router: Router) {
    accept(&app, &listener, &router).await;
    drop(listener);
    // What was begun goes on, and may need the engines more than once; new requests are refused where they are read.
    settle(&app, Instant::now() + app.config.drain).await;
    for model in app.loaded().iter().flat_map(|models| &models.0) {
        model.handle.drain();
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
                if let Some(place) =
                    Place::take(app, |app| &app.counters.connections, app.config.max_connections)
                {
                    tokio::spawn(converse(stream, router.clone(), place));
                } else if let Some(place) =
                    Place::take(app, |app| &app.counters.turned_away, MOST_TURNED_AWAY)
                {
                    tokio::spawn(turn_away(stream, place));
                }
            }
            // Out of file handles, or a client that left already: neither ends the server.
            Err(_) => sleep(TICK).await,
        }
    }
}

/// A connection among those there may be, as long as it lives.
struct Place {
    app: Arc<App>,
    count: fn(&App) -> &AtomicUsize,
}

impl Place {
    fn take(app: &Arc<App>, count: fn(&App) -> &AtomicUsize, most: usize) -> Option<Place> {
        let more = |taken: usize| (taken < most).then_some(taken + 1);
        count(app).fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Place { app: Arc::clone(app), count })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.count)(&self.app).fetch_sub(1, Ordering::AcqRel);
    }
}

/// Answers a client's requests until it or the server has had enough.
async fn converse(stream: TcpStream, router: Router, place: Place) {
    let (app, stream, unwritten) = (&place.app, Arc::new(stream), Arc::<Unwritten>::default());
    // Tokens are small and must not wait for more.
    let _ = stream.set_nodelay(true);
    let config = &app.config;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_header_size(config.max_header_bytes)
        .max_buf_size(config.max_header_bytes.max(64 << 10));
    // Who has asked may close its side before it is answered, if the answer is there at once: `gone` looks for that, and a
    // client that is gone looks the same.
    builder.half_close(true);
    let pace = Pace::new(config.write_timeout, config.least_rate);
    let wire = TokioIo::new(Wire::new(Arc::clone(&stream), pace, Arc::clone(&unwritten)));
    let (router, held) = (TowerToHyperService::new(router), Arc::clone(&unwritten));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&held));
        router.call(request)
    });
    let talk = async {
        let connection = pin!(builder.serve_connection(wire, service));
        // What breaks off a connection concerns its client alone, who knows.
        match select(connection, pin!(app.stopping())).await {
            Either::Left(_) => {}
            Either::Right((_, mut connection)) => {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    };
    let is_gone = matches!(select(pin!(talk), pin!(gone(&stream, &unwritten))).await, Either::Right(_));
    unwritten.let_go();
    if !is_gone {
        linger(&stream, app).await;
    }
}

/// Reads what a client still sends after its last reply: if the connection were closed over it, the reply could be lost.
async fn linger(stream: &TcpStream, app: &App) {
    // Whoever is gone has closed it already.
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
    let deadline = Instant::now() + LINGER;
    let (mut scratch, mut read) = (vec![0; 16 << 10], 0);
    while read < MOST_LINGERED && Instant::now() < deadline {
        match stream.try_read(&mut scratch) {
            Ok(0) => return,
            Ok(bytes) => {
                read += bytes;
                yield_now().await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let silent = deadline.min(Instant::now() + LINGER_SILENT);
                // A server that stops waits for nobody who has had a reply and says nothing.
                if app.is_stopping() || !timeout_at(silent, stream.readable()).await.is_ok_and(|r| r.is_ok())
                {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// One connection too many is told so.
async fn turn_away(stream: TcpStream, place: Place) {
    let error = ApiError::unavailable("too_many_connections", "too many connections are open");
    let body = error.body().to_string();
    let reply = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // Whoever asks nothing is told nothing.
    if !timeout_at(Instant::now() + LAST_WORDS, stream.readable()).await.is_ok_and(|r| r.is_ok()) {
        return;
    }
    // It fits into any socket's buffer; who does not take it has gone.
    let _ = stream.try_write(reply.as_bytes());
    linger(&stream, &place.app).await;
}
