//! Servers and clients that come and go: nothing stays behind of either.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{PATIENCE, Reply, Served, Setup, backend_name, request, user};
use exotherm_server::Config;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn slow() -> Setup {
    Setup { pause: Duration::from_millis(5), ..Setup::default() }
}

fn long_chat(stream: bool) -> Vec<u8> {
    let body = json!({ "messages": [user("hello")], "ignore_eos": true, "stream": stream });
    request("POST", CHAT, &[], body.to_string().as_bytes())
}

/// Sends a long request and waits until the engine runs it.
fn begin(served: &Served, stream: bool) -> TcpStream {
    let before = served.metric("exotherm_tokens_total{model=\"tiny\",kind=\"generated\"}");
    let mut connection = served.connect();
    connection.write_all(&long_chat(stream)).expect("it is read");
    let begin = Instant::now();
    while served.metric("exotherm_tokens_total{model=\"tiny\",kind=\"generated\"}") == before {
        assert!(begin.elapsed() < PATIENCE, "it begins");
        sleep(Duration::from_millis(2));
    }
    connection
}

#[test]
fn a_client_that_goes_away_frees_what_it_had() {
    let served = Served::with(slow());
    // Even one that sent more than its request, so that nobody reads on; and one that closed its own side alone, which looks
    // the same from here.
    let cases = [
        (true, "", Shutdown::Both),
        (false, "", Shutdown::Both),
        (true, "\n", Shutdown::Both),
        (false, "GET / HTTP/1.1\r\n", Shutdown::Both),
        (false, "", Shutdown::Write),
        (true, "", Shutdown::Write),
    ];
    for (stream, more, how) in cases {
        let mut connection = begin(&served, stream);
        connection.write_all(more.as_bytes()).expect("it is taken");
        assert!(served.metric("exotherm_kv_blocks{model=\"tiny\",state=\"used\"}") > 0.0);
        assert_eq!(served.metric("exotherm_requests_running{model=\"tiny\"}"), 1.0);
        let half = match how {
            Shutdown::Write => {
                connection.shutdown(how).expect("closed");
                Some(connection)
            }
            _ => {
                drop(connection);
                None
            }
        };
        let gone = Instant::now();
        served.settle();
        // The step may be one for which a GPU in software compiles a kernel.
        let step = Duration::from_millis(if backend_name() == "gpu" { 1000 } else { 700 });
        assert!(gone.elapsed() < step, "within a step, not at the answer's end");
        drop(half);
    }
    assert_eq!(served.metric("exotherm_requests_total{model=\"tiny\",outcome=\"cancelled\"}"), 6.0);
    let blocks =
        |state: &str| served.metric(&format!("exotherm_kv_blocks{{model=\"tiny\",state=\"{state}\"}}"));
    assert_eq!((blocks("used"), blocks("free") > 0.0), (0.0, true));
}

#[test]
fn a_client_that_does_not_read_is_let_go() {
    let config = Config { write_timeout: Duration::from_millis(300), ..Config::default() };
    let served = Served::with(Setup { config, ..Setup::default() });
    let mut connection = served.connect();
    // More than the sockets' buffers hold: many choices, each chunk of some hundred bytes.
    let body =
        json!({ "messages": [user("hello")], "ignore_eos": true, "stream": true, "n": 32 }).to_string();
    connection.write_all(&request("POST", CHAT, &[], body.as_bytes())).expect("it is read");
    connection.read_exact(&mut [0; 100]).expect("it begins");
    let begin = Instant::now();
    while served.metric("exotherm_http_connections") > 1.0 {
        assert!(begin.elapsed() < PATIENCE, "the connection is cut");
        sleep(Duration::from_millis(20));
    }
    served.settle();
    drop(connection);
}

#[test]
fn a_server_that_loads_says_so() {
    let served = Served::loading(Config::default());
    let health = served.get("/health");
    assert_eq!((health.status, health.text().as_str()), (503, r#"{"status":"loading"}"#));
    let refused = served.post(CHAT, &json!({ "messages": [user("hi")] }));
    refused.fails(503, None, "loading");
    assert!(refused.header("retry-after").is_some());
    served.get("/ready").fails(503, None, "loading");
    served.get("/v1/models").fails(503, None, "loading");
    served.publish(&Setup::default());
    assert_eq!(served.get("/health").fine(), json!({ "status": "ok" }));
    assert_eq!(served.get("/ready").fine(), json!({ "status": "ready" }));
    assert_eq!(served.post(CHAT, &json!({ "messages": [user("hi")], "max_tokens": 1 })).status, 200);
}

#[test]
fn a_device_that_is_lost_is_opened_again() {
    let setup = Setup { reload: Duration::from_millis(500), ..Setup::default() };
    let fails = Arc::clone(&setup.fails);
    let served = Served::with(setup);
    let complete = || served.complete(&json!({ "max_tokens": 9, "temperature": 0 }));
    let text = |reply: Value| reply["choices"][0]["text"].as_str().expect("a text").to_string();
    let wanted = text(complete().fine());
    fails.store(true, Ordering::Relaxed);
    let failed = complete();
    assert_eq!(failed.status, 500, "{}", failed.text());
    assert!(failed.text().contains("the GPU failed: a test"), "{}", failed.text());
    let begin = Instant::now();
    while served.get("/health").status == 200 {
        assert!(begin.elapsed() < PATIENCE, "it says so while it has none");
    }
    assert_eq!(served.get("/health").text(), r#"{"status":"reloading"}"#);
    served.get("/ready").fails(503, None, "reloading");
    // Who comes meanwhile waits.
    assert_eq!(text(complete().fine()), wanted);
    assert_eq!((served.get("/health").status, served.get("/ready").status), (200, 200));
}

#[test]
fn a_server_that_stops_finishes_what_it_began() {
    // Being cut off is for the next test: here a busy machine may take its time.
    let config = Config { drain: PATIENCE, ..Config::default() };
    let mut served = Served::with(Setup { config, ..slow() });
    let mut streamed = begin(&served, true);
    let mut whole = begin(&served, false);
    let mut idle = served.connect();
    assert_eq!(served.get("/health").status, 200, "it has been let in, too, by now");
    served.server().stop();
    let told = Instant::now();
    while TcpStream::connect(served.address).is_ok() {
        assert!(told.elapsed() < Duration::from_secs(5), "nobody is let in any more");
        sleep(Duration::from_millis(2));
    }
    // Not even who is connected may ask: it is told so, or its connection is closed.
    let body = json!({ "messages": [user("hello")], "max_tokens": 1 }).to_string();
    let _ = idle.write_all(&request("POST", CHAT, &[], body.as_bytes()));
    let mut bytes = Vec::new();
    if idle.read_to_end(&mut bytes).is_ok() && !bytes.is_empty() {
        Reply::parse(&bytes).fails(503, None, "shutting_down");
    }
    assert!(!served.server().is_finished(), "what was begun goes on");
    let read = |stream: &mut TcpStream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("it is finished");
        Reply::parse(&bytes)
    };
    let events = read(&mut streamed).events();
    assert_eq!(events.last().map(|e| &e["choices"][0]["finish_reason"]), Some(&json!("length")));
    assert_eq!(read(&mut whole).fine()["choices"][0]["finish_reason"], "length");
    served.stop();
}

#[test]
fn what_does_not_end_in_time_is_cut_off_and_told() {
    let config = Config { drain: Duration::from_millis(100), ..Config::default() };
    let mut served = Served::with(Setup { config, pause: Duration::from_millis(20), ..Setup::default() });
    let mut streamed = begin(&served, true);
    let mut whole = begin(&served, false);
    let told = Instant::now();
    served.stop();
    assert!(told.elapsed() < Duration::from_secs(3));
    let mut bytes = Vec::new();
    streamed.read_to_end(&mut bytes).expect("an orderly end");
    let text = String::from_utf8(bytes).expect("UTF-8");
    assert!(text.contains("shutting_down") && !text.contains("[DONE]"), "{text}");
    let mut bytes = Vec::new();
    whole.read_to_end(&mut bytes).expect("an orderly end");
    Reply::parse(&bytes).fails(503, None, "shutting_down");
}

#[test]
fn an_answer_that_takes_too_long_is_cut_off() {
    let config = Config { request_timeout: Some(Duration::from_millis(100)), ..Config::default() };
    let served = Served::with(Setup { config, ..slow() });
    served.chat(&json!({ "ignore_eos": true })).fails(504, None, "timeout");
    let cut = served.chat(&json!({ "ignore_eos": true, "stream": true }));
    assert!(cut.text().contains("\"code\":\"timeout\"") && !cut.text().contains("[DONE]"), "{}", cut.text());
    served.settle();
}

#[test]
fn connections_are_kept_and_bounded() {
    let config = Config { max_connections: 3, ..Config::default() };
    let served = Served::with(Setup { config, ..Setup::default() });
    let mut kept = served.connect();
    for _ in 0..3 {
        kept.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("it is read");
        let mut reply = [0; 1024];
        let length = kept.read(&mut reply).expect("a reply");
        assert!(reply[..length].starts_with(b"HTTP/1.1 200"));
    }
    let more: Vec<TcpStream> = (0..2).map(|_| served.connect()).collect();
    sleep(Duration::from_millis(50));
    // Those that are turned away take no place, however long they stay.
    let turned_away: Vec<TcpStream> = (0..4).map(|_| served.connect()).collect();
    let refused = served.send("POST", CHAT, &[], &vec![b' '; 1_000_000]);
    refused.fails(503, None, "too_many_connections");
    drop(kept);
    let begin = Instant::now();
    while served.get("/health").status != 200 {
        assert!(begin.elapsed() < Duration::from_millis(900));
    }
    drop((more, turned_away));
}

#[test]
fn pipelined_and_half_closed_clients_get_answers_that_are_there_at_once() {
    let served = Served::new();
    let mut connection = served.connect();
    let two = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    connection.write_all(two).expect("it is read");
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes).expect("both");
    let text = String::from_utf8(bytes).expect("UTF-8");
    assert_eq!(text.matches("HTTP/1.1 200").count(), 2, "{text}");
    // Whether the end comes with the request or after it.
    for _ in 0..50 {
        let mut closing = served.connect();
        closing.write_all(&request("GET", "/health", &[], b"")).expect("it is read");
        closing.shutdown(Shutdown::Write).expect("half closed");
        let mut bytes = Vec::new();
        closing.read_to_end(&mut bytes).expect("an orderly end");
        assert_eq!(Reply::parse(&bytes).fine(), json!({ "status": "ok" }));
    }
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let served = Served::new();
    served.chat(&json!({ "max_tokens": 4, "ignore_eos": true })).fine();
    served.chat(&json!({ "unknown": 4 })).fails(400, Some("unknown"), "unknown_parameter");
    served.settle();
    let metrics = served.get("/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = metrics.text();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
        let family = name.split('{').next().unwrap_or(name);
        let base =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| family.strip_suffix(end)).unwrap_or(family);
        assert!(text.contains(&format!("# TYPE {base} ")), "{base} has a type");
    }
    let of_model = |name: &str, rest: &str| served.metric(&format!("{name}{{model=\"tiny\"{rest}}}"));
    assert_eq!(of_model("exotherm_requests_total", ",outcome=\"length\""), 1.0);
    assert_eq!(of_model("exotherm_tokens_total", ",kind=\"generated\""), 4.0);
    assert_eq!(of_model("exotherm_tokens_total", ",kind=\"prompt\""), 18.0);
    assert_eq!(of_model("exotherm_time_to_first_token_seconds_count", ""), 1.0);
    assert_eq!(of_model("exotherm_time_between_tokens_seconds_count", ""), 3.0);
    assert_eq!(of_model("exotherm_time_between_tokens_seconds_bucket", ",le=\"+Inf\""), 3.0);
    assert_eq!(
        (of_model("exotherm_requests_waiting", ""), of_model("exotherm_requests_running", "")),
        (0.0, 0.0)
    );
    assert_eq!(served.metric("exotherm_http_held_bytes"), 0.0);
    assert!(of_model("exotherm_step_seconds_total", ",phase=\"run\"") > 0.0);
    let replies = |status: u16| {
        served.metric(&format!("exotherm_http_requests_total{{route=\"{CHAT}\",status=\"{status}\"}}"))
    };
    assert_eq!((replies(200), replies(400)), (1.0, 1.0));
    assert_eq!(served.metric("exotherm_http_refusals_total{code=\"unknown_parameter\"}"), 1.0);
    served.chat(&json!({ "max_tokens": 256 })).fails(400, Some("messages"), "context_length_exceeded");
    assert_eq!(of_model("exotherm_requests_total", ",outcome=\"refused\""), 1.0);
    // Texts that are embedded are no answers that were cut off.
    served.post("/v1/embeddings", &json!({ "input": ["a", "b", "c"] })).fine();
    let outcomes = ["length", "stop", "embedded"]
        .map(|name| of_model("exotherm_requests_total", &format!(",outcome=\"{name}\"")));
    assert_eq!(outcomes, [1.0, 0.0, 3.0]);
}

#[test]
fn every_reply_has_a_name_of_its_own() {
    let served = Served::new();
    let ids: Vec<String> = ["/health", "/nothing", "/v1/models", "/"]
        .iter()
        .map(|path| served.get(path).header("x-request-id").expect("an id").to_string())
        .collect();
    assert!(
        ids.iter().all(|id| id.starts_with("req-"))
            && ids.iter().collect::<std::collections::HashSet<_>>().len() == 4
    );
    let page = served.get("/");
    assert!(
        page.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'"))
    );
    assert!(page.text().to_ascii_lowercase().starts_with("<!doctype html>"));
    let described: Value = served.get("/openapi.json").fine();
    assert!(described["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
}
