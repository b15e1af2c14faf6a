//! What all requests share.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use crate::body::Room;
use crate::error::ApiError;
use crate::guard::{Keys, Origins};
use crate::metrics::Counters;
use crate::model::Models;

/// How a server treats its clients.
#[derive(Clone, Debug)]
pub struct Config {
    /// Any of these opens the server; with none, it is open.
    pub api_keys: Vec<String>,
    /// Origins whose web pages may use the server; `*` is all.
    pub cors: Vec<String>,
    /// Names beside localhost under which a server without keys answers; `*` is all. Addresses are always answered: no
    /// foreign name can be made to point at one.
    pub hosts: Vec<String>,
    /// Whether parameters that are not known are left out of account, with a warning in the reply's header.
    pub lenient: bool,
    /// The longest that an answer may take.
    pub request_timeout: Option<Duration>,
    /// How long requests may go on after the server was told to stop.
    pub drain: Duration,
    pub max_body_bytes: usize,
    /// What all bodies, and what is made of them until the replies are written, may take together.
    pub max_bodies_bytes: usize,
    pub max_header_bytes: usize,
    pub max_connections: usize,
    /// How long a client may be silent in the middle of a body, all in all longer only as it sends `least_rate`: what it has
    /// been given room for is wanted by others.
    pub body_silence: Duration,
    /// How long a client may take to send a request's head, its body, or to take in a piece of the reply.
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    /// Bytes that a client which keeps the server waiting must send of a body, or take in of the reply, in a second, on the
    /// whole.
    pub least_rate: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            api_keys: Vec::new(),
            cors: Vec::new(),
            hosts: Vec::new(),
            lenient: false,
            request_timeout: None,
            drain: Duration::from_secs(30),
            max_body_bytes: 2 << 20,
            max_bodies_bytes: 64 << 20,
            max_header_bytes: 32 << 10,
            max_connections: 512,
            body_silence: Duration::from_secs(5),
            header_timeout: Duration::from_secs(20),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            least_rate: 1 << 10,
        }
    }
}

/// Without keys, a page of any name that is made to point here could use the server through its visitor's browser.
fn names_answered(config: &Config) -> Option<Vec<String>> {
    let is_open = config.api_keys.is_empty() && !config.hosts.iter().any(|host| host == "*");
    is_open.then(|| config.hosts.clone())
}

pub struct App {
    pub config: Config,
    pub keys: Keys,
    pub origins: Origins,
    pub room: Arc<Room>,
    pub counters: Arc<Counters>,
    /// The turn of large requests to be read.
    pub large: Arc<Semaphore>,
    models: OnceLock<Models>,
    stop: watch::Sender<bool>,
}

impl App {
    pub fn new(config: Config) -> App {
        App {
            keys: Keys::new(&config.api_keys),
            origins: Origins::new(config.cors.clone(), names_answered(&config)),
            room: Room::new(config.max_bodies_bytes),
            counters: Arc::new(Counters::new()),
            large: Arc::new(Semaphore::new(1)),
            models: OnceLock::new(),
            stop: watch::Sender::new(false),
            config,
        }
    }

    /// Gives the server its models; the first time counts.
    pub fn publish(&self, models: Models) {
        // Who publishes twice has made a mistake that changes nothing.
        let _ = self.models.set(models);
    }

    pub fn loaded(&self) -> Option<&Models> {
        self.models.get()
    }

    /// The models, or an error as long as they are being loaded.
    pub fn models(&self) -> Result<&Models, ApiError> {
        self.loaded().ok_or_else(|| ApiError::unavailable("loading", "the models are being loaded"))
    }

    /// Whether no engine has died.
    pub fn is_sound(&self) -> bool {
        self.loaded().is_none_or(|models| models.0.iter().all(|model| model.handle.is_alive()))
    }

    /// Whether a model is loaded once more because its device has failed.
    pub fn is_restoring(&self) -> bool {
        self.loaded().is_some_and(|models| models.0.iter().any(|model| model.handle.is_restoring()))
    }

    /// Refuses new requests once the server was told to stop.
    pub fn check_open(&self) -> Result<(), ApiError> {
        match self.is_stopping() {
            true => Err(ApiError::unavailable("shutting_down", "the server is shutting down")),
            false => Ok(()),
        }
    }

    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Ends when the server is told to stop.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stop = self.stop.subscribe();
        async move {
            // Without a sender there is no server either.
            let _ = stop.wait_for(|stop| *stop).await;
        }
    }
}
