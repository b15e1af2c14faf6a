//! A server with a tiny model, and a client that sees every byte.
// Every test binary uses its own part of this.
#![allow(dead_code)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use exotherm_engine::{Engine, EngineConfig, EngineHandle};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{Backend, BackendError, Batch, Executor, Wrapped, Wrapper};
use exotherm_models::{LoadOptions, load};
use exotherm_server::{Config, Facts, ServedModel, Server};
use exotherm_tokenizer::{GgufVocab, Tokenizer};
use exotherm_weights::Checkpoint;
use serde_json::{Value, json};

#[path = "../../../kernels/tests/gpu_at_hand/mod.rs"]
mod gpu_at_hand;

pub const CTX: usize = 256;
/// A GPU in software compiles its kernels in the middle of a first step.
pub const PATIENCE: Duration = Duration::from_secs(60);
const VOCAB: usize = 113;

/// An executor with a pause in every step, so that there is time for something to happen, and a device that fails when it is
/// told to.
struct Slow(Box<dyn Executor>, Duration, Arc<AtomicBool>);

impl Wrapper for Slow {
    fn inner(&self) -> &dyn Executor {
        self.0.as_ref()
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        self.0.as_mut()
    }

    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        sleep(self.1);
        if self.2.swap(false, Ordering::Relaxed) {
            return Err(BackendError::Device("a test".into()));
        }
        self.0.run(batch)
    }
}

/// What computes: the GPU where the tests are told so, else the reference.
fn computing() -> Box<dyn Backend> {
    match std::env::var_os("EXOTHERM_TEST_BACKEND").is_some_and(|name| name == "gpu") {
        true => Box::new(gpu_at_hand::gpu().expect("a GPU").clone()),
        false => Box::new(ReferenceBackend),
    }
}

/// Its name.
pub fn backend_name() -> &'static str {
    computing().name()
}

fn backend(pause: Duration, fails: &Arc<AtomicBool>) -> Wrapped {
    let fails = Arc::clone(fails);
    Wrapped::new(computing(), move |inner, _| Slow(inner, pause, Arc::clone(&fails)))
}

/// What a test wants to be different.
pub struct Setup {
    pub config: Config,
    pub max_seqs: usize,
    pub queue: usize,
    /// What a step takes at least.
    pub pause: Duration,
    /// Lets the next step find its device lost.
    pub fails: Arc<AtomicBool>,
    /// What it takes to have another.
    pub reload: Duration,
    pub template: bool,
    /// SentencePiece's tokenizer, which puts a space before a text.
    pub spm: bool,
    /// Rows of the model's vocabulary that have no text.
    pub padding: usize,
    pub names: Vec<&'static str>,
}

impl Default for Setup {
    fn default() -> Setup {
        let config = Config { drain: Duration::from_secs(5), ..Config::default() };
        Setup {
            config,
            max_seqs: 16,
            queue: 16,
            pause: Duration::ZERO,
            fails: Arc::default(),
            reload: Duration::ZERO,
            template: true,
            spm: false,
            padding: 0,
            names: vec!["tiny"],
        }
    }
}

/// A golden model with a tokenizer: ids 1 to 95 are the printable ASCII characters, 96 is a newline, the others are
/// pairs of letters.
fn talking_model(setup: &Setup, name: &str) -> ServedModel {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden/qwen3");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(file), dir.path().join(file)).expect("a small copy");
    }
    let mut tokens: Vec<String> = (32u8..127).map(|c| char::from(c).to_string()).collect();
    tokens.push("\n".into());
    tokens.extend((b'a'..=b'z').map(|c| format!("q{}", char::from(c))).take(VOCAB - 1 - tokens.len()));
    tokens.truncate(VOCAB - 1 - setup.padding);
    let line = |(i, token): (usize, &String)| {
        let escaped = token.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
        format!("{} '{escaped}' {}\n", i + 1, token.len())
    };
    let vocab: String = tokens.iter().enumerate().map(line).collect();
    fs::write(dir.path().join("rwkv_vocab_test.txt"), vocab).expect("written");
    if setup.template {
        let jinja = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[bot]";
        fs::write(dir.path().join("chat_template.jinja"), jinja).expect("written");
    }
    let mut checkpoint = Checkpoint::open(dir.path()).expect("a checkpoint");
    let program = load(&mut checkpoint, &LoadOptions::default()).expect("a model").program;
    let tokenizer = match setup.spm {
        true => spaced_tokenizer(),
        false => Tokenizer::from_dir(checkpoint.dir()).expect("readable").expect("a tokenizer"),
    };
    let stop_tokens = tokenizer.end_of_generation().to_vec();
    let config = EngineConfig { queue: setup.queue, ..EngineConfig::serving(CTX, setup.max_seqs) };
    let (pause, reload, fails) = (setup.pause, setup.reload, Arc::clone(&setup.fails));
    let backend = backend(pause, &fails);
    let mut engine = Engine::new(&program, &backend, config).expect("a small engine");
    engine.set_rebuild(Box::new(move |limits| {
        sleep(reload);
        self::backend(pause, &fails).compile(&program, limits).map_err(|error| error.to_string())
    }));
    let handle = EngineHandle::start(engine, setup.max_seqs + setup.queue).expect("a thread");
    let facts =
        Facts { kv_type: "f16".into(), backend: backend.name().into(), level: "scalar".into(), threads: 1 };
    ServedModel::new(name.into(), handle, tokenizer, stop_tokens, facts)
}

/// The token of ` blue` in a tokenizer that puts a space before a text.
pub const BLUE: u32 = 3;

/// BOS, ` blue`, ` sky`, a space and the small letters.
fn spaced_tokenizer() -> Tokenizer {
    let letters: Vec<[u8; 1]> = (b'a'..=b'z').map(|c| [c]).collect();
    let words =
        ["<unk>", "<s>", "</s>", "\u{2581}blue", "\u{2581}sky", "\u{2581}", "\u{2581}s", "\u{2581}sk"];
    let tokens: Vec<&[u8]> =
        words.iter().map(|w| w.as_bytes()).chain(letters.iter().map(|c| &c[..])).collect();
    let types = (0..tokens.len()).map(|id| [2, 3, 3].get(id).copied().unwrap_or(1)).collect();
    let vocab = GgufVocab {
        model: "llama".into(),
        scores: vec![0.0; tokens.len()],
        tokens,
        types,
        chat_template: Some("{% for m in messages %}{{ m.content }}{% endfor %}".into()),
        ..GgufVocab::default()
    };
    Tokenizer::from_gguf(vocab).expect("a small vocabulary")
}

/// A running server; it stops when the test is done with it.
pub struct Served {
    server: Option<Server>,
    pub engines: OnceLock<Vec<EngineHandle>>,
    pub address: SocketAddr,
}

impl Served {
    pub fn new() -> Served {
        Served::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Served {
        let served = Served::loading(setup.config.clone());
        served.publish(&setup);
        served
    }

    /// One that has no models yet.
    pub fn loading(config: Config) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = Server::start(listener, config).expect("a server");
        Served { address: server.address(), engines: OnceLock::new(), server: Some(server) }
    }

    pub fn publish(&self, setup: &Setup) {
        let models: Vec<_> = setup.names.iter().map(|name| talking_model(setup, name)).collect();
        self.engines.get_or_init(|| models.iter().map(|model| model.handle.clone()).collect());
        self.server().publish(models);
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("it runs until it is dropped")
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Sends bytes and reads until the server closes.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        stream.write_all(bytes).expect("it is read");
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).expect("a reply and an orderly end");
        reply
    }

    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Reply {
        Reply::parse(&self.raw(&request(method, path, headers, body)))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &["content-type: application/json"], body.to_string().as_bytes())
    }

    pub fn chat(&self, extra: &Value) -> Reply {
        self.post(
            "/v1/chat/completions",
            &merged(json!({ "model": "tiny", "messages": [user("hello")] }), extra),
        )
    }

    pub fn complete(&self, extra: &Value) -> Reply {
        self.post("/v1/completions", &merged(json!({ "model": "tiny", "prompt": "hello" }), extra))
    }

    /// A sample of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no {name} in {text}"));
        value.parse().expect("a number")
    }

    /// Waits until nothing runs and all blocks are free.
    pub fn settle(&self) {
        let begin = Instant::now();
        let busy = |name: &str| self.metric(&format!("{name}model=\"tiny\"}}")) > 0.0;
        let used = || self.metric("exotherm_kv_blocks{model=\"tiny\",state=\"used\"}") > 0.0;
        while used() || busy("exotherm_requests_running{") || busy("exotherm_requests_waiting{") {
            assert!(begin.elapsed() < PATIENCE, "{}", self.get("/metrics").text());
            sleep(Duration::from_millis(5));
        }
    }

    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
            server.wait().expect("it was told to stop");
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

pub fn user(content: &str) -> Value {
    json!({ "role": "user", "content": content })
}

pub fn merged(mut base: Value, extra: &Value) -> Value {
    for (name, value) in extra.as_object().into_iter().flatten() {
        base[name] = value.clone();
    }
    base
}

pub fn request(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    headers.iter().for_each(|header| bytes += &format!("{header}\r\n"));
    bytes += "\r\n";
    [bytes.as_bytes(), body].concat()
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn parse(bytes: &[u8]) -> Reply {
        let shown = || String::from_utf8_lossy(bytes).into_owned();
        let end =
            bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {}", shown()));
        let head = std::str::from_utf8(&bytes[..end]).expect("a head in ASCII");
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_string()))
            .collect();
        let mut reply = Reply { status: status.expect("a status"), headers, body: bytes[end + 4..].to_vec() };
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = unchunked(&reply.body);
        } else if let Some(length) = reply.header("content-length") {
            assert_eq!(length.parse(), Ok(reply.body.len()), "{}", shown());
        }
        reply
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    #[track_caller]
    pub fn fine(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// An error in OpenAI's shape, with this status, about this parameter.
    #[track_caller]
    pub fn fails(&self, status: u16, param: Option<&str>, code: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        let error = &self.json()["error"];
        assert_eq!(error["param"], json!(param), "{error}");
        assert_eq!(error["code"], code, "{error}");
        assert!(error["type"].is_string() && !error["message"].as_str().unwrap_or("").is_empty(), "{error}");
    }

    /// The data of each event, without the `[DONE]` that must end them.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("text/event-stream"));
        let text = self.text();
        assert!(text.ends_with("\n\n"), "every event ends with an empty line: {text:?}");
        let mut data: Vec<&str> = text
            .split_terminator("\n\n")
            .filter(|event| !event.starts_with(':'))
            .map(|event| event.strip_prefix("data: ").unwrap_or_else(|| panic!("no data in {event:?}")))
            .collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.iter().map(|data| serde_json::from_str(data).expect("each event is one line of JSON")).collect()
    }
}

/// The text of choice `index`, put together from a stream.
pub fn joined(events: &[Value], index: usize) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().into_iter().flatten());
    choices
        .filter(|choice| choice["index"] == index)
        .filter_map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str()))
        .collect()
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n").expect("a chunk's size");
        let size = std::str::from_utf8(&bytes[..end]).expect("hexadecimal digits");
        let size = usize::from_str_radix(size, 16).expect("hexadecimal digits");
        if size == 0 {
            assert_eq!(&bytes[end..], b"\r\n\r\n", "nothing follows the last chunk");
            return body;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        assert_eq!(&bytes[end + 2 + size..end + 4 + size], b"\r\n");
        bytes = &bytes[end + 4 + size..];
    }
}
