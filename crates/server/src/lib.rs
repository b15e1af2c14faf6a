//! The OpenAI API over HTTP, in front of engines that each run on a thread of their own.
//!
//! A request's way: [`body`] reads it within bounds, [`chat`] or [`completions`] read what is asked, strictly, and put
//! it into tokens; [`generate`] hands it to the engine and turns tokens into text; [`answer`] and [`stream`] reply.
#![forbid(unsafe_code)]

mod answer;
mod app;
mod body;
mod chat;
mod completions;
mod describe;
mod embeddings;
mod error;
mod fields;
mod generate;
mod guard;
mod ids;
mod listen;
mod logprobs;
mod metrics;
mod model;
mod params;
mod post;
mod reply;
mod routes;
mod spans;
mod stream;
mod text;
mod trace;
mod wire;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

pub use app::Config;
pub use model::{Facts, ServedModel};

use app::App;
use socket2::SockRef;
use tokio::runtime::Handle;

/// Threads that parse and tokenize: as many as one machine's users keep busy, and no more memory than they need.
const READERS: usize = 2;

/// What the system keeps for a client that does not read, before its request is held to be given up.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// A server that runs on a thread of its own. It listens from the first moment and says that it is loading until it is
/// given its models.
pub struct Server {
    app: Arc<App>,
    address: SocketAddr,
    /// Of the thread of connections.
    runtime: Handle,
    thread: JoinHandle<()>,
}

impl Server {
    pub fn start(listener: TcpListener, config: Config) -> io::Result<Server> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        // Connections inherit it.
        SockRef::from(&listener).set_send_buffer_size(SEND_BUFFER_BYTES)?;
        let app = Arc::new(App::new(config));
        // One thread is enough for connections, and leaves the others to the engine.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(READERS)
            .thread_name("reader")
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (router, handle) = (routes::router(Arc::clone(&app)), runtime.handle().clone());
        let shared = Arc::clone(&app);
        let serve = move || {
            runtime.block_on(listen::serve(shared, listener, router));
            // A reader that is in the middle of a long text is not waited for.
            runtime.shutdown_background();
        };
        let thread = Builder::new().name("http".into()).spawn(serve)?;
        Ok(Server { app, address, runtime: handle, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Hands it the models that it serves; the first answers requests that name none, if it is the only one.
    pub fn publish(&self, models: Vec<ServedModel>) {
        for post in models.iter().map(|model| Arc::clone(&model.post)) {
            self.runtime.spawn(async move { post.deliver().await });
        }
        self.app.publish(model::Models(models.into_iter().map(Arc::new).collect()));
    }

    /// Stops listening. Requests that are under way are finished, or cut off when the time for that is over.
    pub fn stop(&self) {
        self.app.stop();
    }

    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it has stopped, and ends the engines; an error if it was never told to.
    pub fn wait(self) -> io::Result<()> {
        let ended = self.thread.join();
        let was_told = self.app.is_stopping();
        for model in self.app.loaded().iter().flat_map(|models| &models.0) {
            model.handle.shut_down();
        }
        match (ended, was_told) {
            (Ok(()), true) => Ok(()),
            (Ok(()), false) => Err(io::Error::other("the server's thread ended of itself")),
            (Err(_), _) => Err(io::Error::other("the server's thread panicked")),
        }
    }
}
