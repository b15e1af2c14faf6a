//! `exotherm serve`: from the command line to the last request.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::User;
use serde_json::{Value, json};

/// A server that is ready, ended with the test.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(user: &User, args: &[&str]) -> Server {
        Server::begin(user.command(&[&["serve", "--port", "0", "--threads", "1"], args].concat()))
    }

    fn begin(mut command: Command) -> Server {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("UTF-8");
        let address = line.trim().strip_prefix("listening at http://");
        let address =
            address.unwrap_or_else(|| panic!("no address: {line:?}{}", rest(&mut child))).to_string();
        Server { child, address }
    }

    /// Sends a request and leaves the reply to be read.
    fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n"
        );
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).expect("it is read");
        stream
    }

    fn ask(&self, path: &str, body: &Value) -> String {
        read(self.send("POST", path, &body.to_string()))
    }

    #[cfg(unix)]
    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(done.is_ok_and(|status| status.success()));
    }

    /// How it ended and what it had said on stderr.
    fn end(mut self) -> (Option<i32>, String) {
        let begin = Instant::now();
        while self.child.try_wait().expect("a child").is_none() {
            assert!(begin.elapsed() < Duration::from_secs(60), "it ends");
            std::thread::sleep(Duration::from_millis(5));
        }
        (self.child.wait().expect("it ended").code(), rest(&mut self.child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where the test went as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rest(child: &mut Child) -> String {
    let mut text = String::new();
    if child.try_wait().is_ok_and(|status| status.is_some())
        && let Some(stderr) = &mut child.stderr
    {
        stderr.read_to_string(&mut text).expect("UTF-8");
    }
    text
}

fn read(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a whole reply in UTF-8");
    text
}

fn chat(max_tokens: usize, stream: bool) -> Value {
    json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": max_tokens, "stream": stream, "ignore_eos": true })
}

/// A server that was given so much memory takes that, within a tenth, once all of its cache was used.
#[test]
#[cfg(all(unix, feature = "real-weights"))]
fn memory_is_what_it_was_planned_to_be() {
    const GIVEN: f64 = 150.0 * (1 << 20) as f64;
    let pulled = Command::new(env!("CARGO_BIN_EXE_exotherm")).args(["pull", "smollm2", "--json"]).output();
    let pulled: Value = serde_json::from_slice(&pulled.expect("it runs").stdout).expect("JSON");
    let model = pulled["path"].as_str().expect("a path");
    let server = Server::start(&User::new(), &[model, "--memory", "150M", "--ctx", "1000"]);
    let gauge = |name: &str| -> f64 {
        let metrics = read(server.send("GET", "/metrics", ""));
        let is_it = |line: &&str| !line.starts_with('#') && line.contains(name);
        let line = metrics.lines().find(is_it).unwrap_or_else(|| panic!("{metrics}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    };
    let mut rounds = 0;
    // The last block of an answer is given back where it is not full.
    while gauge("state=\"free\"") > 1.0 {
        rounds += 1;
        assert!(rounds < 8, "the cache is filled by now");
        let prompt: Vec<usize> = (0..900).map(|i| 100 + (i * 7 + rounds * 1000) % 40_000).collect();
        let reply = server.ask("/v1/completions", &json!({ "prompt": prompt, "max_tokens": 8 }));
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    }
    // Bodies that are not sent to their end are in the plan, too: as many as are let in.
    let length = 1_700_000;
    let head = format!("POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
    let halves: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(&server.address).expect("it listens");
            stream.set_write_timeout(Some(Duration::from_millis(200))).expect("a timeout");
            // Those that wait for their turn are not read.
            let _ = stream.write_all(&[head.as_bytes(), &vec![b' '; length - 1]].concat());
            stream
        })
        .collect();
    assert!(gauge("exotherm_http_held_bytes") >= 2.0 * length as f64);
    let resident = gauge("exotherm_resident_memory_bytes");
    drop(halves);
    assert!((resident / GIVEN - 1.0).abs() < 0.1, "{resident} of {GIVEN}");
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(0));
}

/// A server that is given too little says how much it takes, and takes that.
#[test]
#[cfg(unix)]
fn the_memory_that_is_told_is_the_memory_to_give() {
    let user = User::new();
    let model = user.talking_model("talker", true);
    let with = |mib: usize, more: &[&str]| -> Vec<String> {
        let memory = format!("--memory={mib}M");
        let args = [&[model.as_str(), "--ctx", "4096", "--max-seqs", "2", &memory], more].concat();
        args.into_iter().map(str::to_string).collect()
    };
    let refused = |mib: usize| {
        let args = with(mib, &["--port", "0"]);
        user.run(&["serve"].into_iter().chain(args.iter().map(String::as_str)).collect::<Vec<_>>())
    };
    let little = refused(17);
    little.fails(1, &["17 MiB of memory are too few", "beside the model 24;"]);
    let told = little.stderr.split("needs ").nth(1).and_then(|rest| rest.split(' ').next());
    let told: usize = told.and_then(|number| number.parse().ok()).expect("a number");
    refused(told - 1).fails(1, &["are too few"]);
    let args = with(told, &[]);
    let server = Server::start(&user, &args.iter().map(String::as_str).collect::<Vec<_>>());
    server.signal("-TERM");
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("requests          8.0 MiB"), "{said}");
}

#[test]
#[cfg(all(unix, not(feature = "otlp")))]
fn a_collector_that_nothing_is_sent_to_is_not_passed_over() {
    let user = User::new();
    let model = user.talking_model("talker", true);
    let mut command = user.command(&["serve", &model, "--port", "0", "--threads", "1"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
    let server = Server::begin(command);
    server.signal("-TERM");
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
    let about = said.lines().filter(|line| line.contains("OTEL_EXPORTER_OTLP_ENDPOINT"));
    assert!(about.count() == 1 && said.contains("cargo feature `otlp`"), "{said}");
}

#[test]
#[cfg(unix)]
fn a_server_answers_and_ends_in_good_order() {
    let user = User::new();
    let model = user.talking_model("talker", true);
    let server = Server::start(&user, &[&model, "--max-seqs", "2", "--ctx", "512"]);
    assert!(read(server.send("GET", "/health", "")).starts_with("HTTP/1.1 200"));
    assert!(read(server.send("GET", "/v1/models", "")).contains(r#""id":"talker""#), "no folder is told");
    let reply = server.ask("/v1/chat/completions", &chat(5, false));
    assert!(reply.contains(r#""completion_tokens":5"#), "{reply}");
    // Under way when it is told to stop, and finished all the same.
    let mut streamed = server.send("POST", "/v1/chat/completions", &chat(200, true).to_string());
    let mut begun = [0; 200];
    streamed.read_exact(&mut begun).expect("it begins");
    server.signal("-TERM");
    let text = read(streamed);
    assert!(text.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{text}");
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
    for word in ["2 sequences of up to", "weights", "KV cache", "total", "requests", "in all", "stopping"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

#[test]
#[cfg(unix)]
fn requests_are_told_in_lines_where_that_is_asked_for() {
    let user = User::new();
    let model = user.talking_model("talker", true);
    let mut command = user.command(&[
        "serve",
        "--port",
        "0",
        "--model",
        &format!("a={model}"),
        "--model",
        &format!("b={model}"),
    ]);
    command.env("RUST_LOG", "exotherm=info").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("UTF-8");
    let address = line.trim().strip_prefix("listening at http://").expect("an address").to_string();
    let server = Server { child, address };
    let of_b = json!({ "model": "b", "prompt": "x", "max_tokens": 3, "ignore_eos": true });
    assert!(server.ask("/v1/completions", &of_b).contains(r#""model":"b""#));
    assert!(server.ask("/v1/completions", &json!({ "prompt": "x" })).starts_with("HTTP/1.1 400"));
    assert!(
        server.ask("/v1/embeddings", &json!({ "model": "b", "input": ["x", "yz"] })).contains("HTTP/1.1 200")
    );
    server.signal("-INT");
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("[http] id=req-")).collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(
        lines[0].contains(r#"status=200"#)
            && lines[0].contains(r#"model="b" prompt=1 cached=0 generated=3 finish=length"#)
    );
    assert!(lines[2].contains(r#"model="b" prompt=3 cached=0 generated=0 finish=embedded"#), "{}", lines[2]);
    assert!(lines[1].contains("POST /v1/completions status=400") && lines[1].contains("error="));
}

#[test]
#[cfg(unix)]
fn a_second_signal_ends_it_at_once() {
    let user = User::new();
    let model = user.talking_model("talker", true);
    let server = Server::start(&user, &[&model, "--backend", "reference", "--ctx", "4096"]);
    let mut streamed = server.send("POST", "/v1/chat/completions", &chat(4000, true).to_string());
    streamed.read_exact(&mut [0; 200]).expect("it begins");
    server.signal("-TERM");
    std::thread::sleep(Duration::from_millis(100));
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(130));
}

#[test]
#[cfg(unix)]
fn a_server_that_is_stopped_while_it_loads_ends_well() {
    let user = User::new();
    let model = user.talking_model("talker", true);
    // So many take long enough to be stopped between two of them.
    let models: Vec<String> = (0..60).map(|i| format!("--model=m{i}={model}")).collect();
    let args: Vec<&str> =
        ["serve", "--port", "0"].into_iter().chain(models.iter().map(String::as_str)).collect();
    let mut command = user.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("m0: ready") {
        line.clear();
        assert!(said.read_line(&mut line).is_ok_and(|bytes| bytes > 0), "it loads the first");
    }
    let server = Server { child, address: String::new() };
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn what_cannot_be_served_is_said_before_anything_is_loaded() {
    let user = User::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    user.run(&["serve", "absent.gguf", "--port", &port]).fails(1, &["cannot listen at 127.0.0.1", &port]);
    user.run(&["serve", "--host", "0.0.0.0", "--port", "0"])
        .fails(2, &["0.0.0.0", "--api-key", "--insecure"]);
    user.run(&["serve", "--api-key", "", "--port", "0"]).fails(2, &["key"]);
    user.run(&["serve", "--model", "x", "--port", "0"]).fails(2, &["NAME=MODEL"]);
    let about_spans = if cfg!(feature = "otlp") { "no address of a collector" } else { "--features otlp" };
    user.run(&["serve", "--otlp", "nonsense", "--port", "0"]).fails(2, &[about_spans]);
    user.run(&["serve", "--model", "a=x", "--model", "a=y", "--port", "0"])
        .fails(2, &["two models are called a"]);
    user.run(&["serve", "m", "--model", "a=x"]).fails(2, &["cannot be used with"]);
    user.run(&["serve", "absent.gguf", "--port", "0"]).fails(1, &["absent.gguf"]);
    let help = user.run(&["serve", "--help"]).fine();
    for word in ["Examples:", "curl", "EXOTHERM_API_KEYS", "--drain"] {
        assert!(help.stdout.contains(word), "no {word}");
    }
}
