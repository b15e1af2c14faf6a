//! Clients that dawdle, and servers that end in the middle of something: every byte that is owed arrives, and no more is
//! held than is planned for.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{CTX, PATIENCE, Reply, Served, Setup, joined, merged, request, user};
use exotherm_server::Config;
use serde_json::{Value, json};
use socket2::SockRef;

const CHAT: &str = "/v1/chat/completions";

/// A client for which the system keeps next to nothing.
fn narrow(served: &Served) -> TcpStream {
    let stream = served.connect();
    SockRef::from(&stream).set_recv_buffer_size(4 << 10).expect("a small buffer");
    stream
}

/// Lets what has waited come faster.
fn widen(stream: &TcpStream) {
    SockRef::from(stream).set_recv_buffer_size(1 << 20).expect("a large buffer");
}

fn rest(mut stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an orderly end");
    Reply::parse(&bytes)
}

#[test]
fn a_reply_that_is_still_being_read_is_not_cut_off_by_a_stop() {
    let config = Config { drain: PATIENCE, ..Config::default() };
    let mut served = Served::with(Setup { config, ..Setup::default() });
    let body = json!({ "tokens": vec![97; 80_000] }).to_string();
    let mut slow = narrow(&served);
    slow.write_all(&request("POST", "/detokenize", &[], body.as_bytes())).expect("it is read");
    let mut begun = [0; 12];
    slow.read_exact(&mut begun).expect("it begins");
    served.server().stop();
    // Longer than connections without a request are waited for.
    sleep(Duration::from_millis(1500));
    widen(&slow);
    let mut bytes = begun.to_vec();
    slow.read_to_end(&mut bytes).expect("all of it");
    let text = Reply::parse(&bytes).fine()["content"].as_str().map(str::len);
    assert_eq!(text, Some(160_000));
    served.stop();
}

#[test]
fn many_embeddings_are_finished_though_the_server_stops() {
    let config = Config { drain: PATIENCE, ..Config::default() };
    let setup = Setup { config, pause: Duration::from_millis(10), ..Setup::default() };
    let mut served = Served::with(setup);
    let body = json!({ "input": vec!["text"; 50] }).to_string();
    let mut connection = served.connect();
    connection.write_all(&request("POST", "/v1/embeddings", &[], body.as_bytes())).expect("it is read");
    let begin = Instant::now();
    while served.metric("exotherm_tokens_total{model=\"tiny\",kind=\"prompt\"}") == 0.0 {
        assert!(begin.elapsed() < PATIENCE, "it begins");
        sleep(Duration::from_millis(2));
    }
    served.server().stop();
    assert_eq!(rest(connection).fine()["data"].as_array().map(Vec::len), Some(50));
    served.stop();
}

#[test]
fn a_client_that_takes_a_little_at_a_time_is_let_go() {
    let config =
        Config { write_timeout: Duration::from_millis(400), least_rate: 1 << 30, ..Config::default() };
    let served = Served::with(Setup { config, ..Setup::default() });
    let mut connection = narrow(&served);
    let body =
        json!({ "messages": [user("hello")], "ignore_eos": true, "stream": true, "n": 32 }).to_string();
    connection.write_all(&request("POST", CHAT, &[], body.as_bytes())).expect("it is read");
    let begin = Instant::now();
    let mut piece = [0; 2048];
    // It never keeps the server waiting for long, but for ever.
    while served.metric("exotherm_http_connections") > 1.0 {
        assert!(begin.elapsed() < PATIENCE, "the connection is cut");
        let _ = connection.read(&mut piece);
        sleep(Duration::from_millis(20));
    }
    served.settle();
}

#[test]
fn what_has_piled_up_is_sent_in_pieces() {
    let served = Served::new();
    let mut paused = narrow(&served);
    let body = json!({ "messages": [user("hello")], "ignore_eos": true, "stream": true, "n": 8 }).to_string();
    paused.write_all(&request("POST", CHAT, &[], body.as_bytes())).expect("it is read");
    sleep(Duration::from_millis(50));
    served.settle();
    widen(&paused);
    let mut bytes = Vec::new();
    paused.read_to_end(&mut bytes).expect("all of it");
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let (mut at, mut largest, mut chunks) = (head, 0, 0);
    while at < bytes.len() {
        let end = at + bytes[at..].windows(2).position(|w| w == b"\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..end]).expect("digits"), 16);
        let size = size.expect("digits");
        (largest, chunks, at) = (largest.max(size), chunks + 1, end + size + 4);
    }
    assert!(largest > 1_000 && largest < 20_000 && chunks > 10, "{chunks} chunks, {largest} bytes");
    let events = Reply::parse(&bytes).events();
    assert!((0..8).all(|i| joined(&events, i).len() >= CTX - 18), "every token of every choice");
}

/// Log-probabilities that nobody reads take their share of the memory for bodies; where that is taken, the request ends.
#[test]
fn what_is_not_read_of_log_probabilities_is_counted() {
    let config = Config { max_bodies_bytes: 200_000, ..Config::default() };
    let served = Served::with(Setup { config, ..Setup::default() });
    let mut asleep = served.connect();
    let body = json!({
        "messages": [user("hello")], "ignore_eos": true, "stream": true, "n": 32, "logprobs": true, "top_logprobs": 20
    });
    asleep.write_all(&request("POST", CHAT, &[], body.to_string().as_bytes())).expect("it is read");
    let (begin, mut most) = (Instant::now(), 0.0);
    while served.metric("exotherm_requests_total{model=\"tiny\",outcome=\"cancelled\"}") == 0.0 {
        most = served.metric("exotherm_http_held_bytes").max(most);
        assert!(begin.elapsed() < PATIENCE, "{most} bytes and it goes on");
    }
    assert!(most > 20_000.0 && most <= 200_000.0, "{most}");
    served.settle();
    let mut bytes = Vec::new();
    asleep.read_to_end(&mut bytes).expect("an orderly end");
    assert!(String::from_utf8_lossy(&bytes).contains("client_too_slow"));
    assert_eq!(served.metric("exotherm_http_held_bytes"), 0.0, "all is given back");
    // Who reads is served as before.
    let events = served.chat(&merged(body, &json!({ "n": 2, "max_tokens": 20 }))).events();
    assert!(!joined(&events, 1).is_empty());
}

#[test]
fn refusals_are_heard_whatever_is_still_sent() {
    let config = Config { api_keys: vec!["k".into()], ..Config::default() };
    let locked = Served::with(Setup { config, ..Setup::default() });
    let served = Served::new();
    let large = vec![b'x'; 5_000_000];
    served.send("POST", "/nothing", &[], &large).fails(404, None, "not_found");
    served.send("GET", CHAT, &[], &large).fails(405, None, "method_not_allowed");
    served.send("POST", CHAT, &["origin: https://evil.example"], &large).fails(
        403,
        None,
        "origin_not_allowed",
    );
    served.send("POST", CHAT, &[], &large).fails(413, None, "request_too_large");
    locked.send("POST", CHAT, &[], &large).fails(401, None, "invalid_api_key");
}

#[test]
fn an_engine_that_is_gone_is_said_to_be() {
    let served = Served::new();
    assert_eq!((served.get("/health").status, served.get("/ready").status), (200, 200));
    served.engines.get().expect("models").iter().for_each(|engine| engine.shut_down());
    let health = served.get("/health");
    assert_eq!((health.status, health.text().as_str()), (503, r#"{"status":"engine stopped"}"#));
    served.get("/ready").fails(503, None, "engine_stopped");
    assert_eq!(served.chat(&json!({ "max_tokens": 1 })).status, 503);
}

#[test]
fn rows_without_a_text_are_never_chosen() {
    let served = Served::with(Setup { padding: 60, ..Setup::default() });
    let bias = json!({ "112": 100, "80": 100, "53": 100 });
    for temperature in [0, 2] {
        let wild = json!({
            "temperature": temperature, "n": 4, "max_tokens": 60, "ignore_eos": true, "logit_bias": bias, "prompt": "0",
            "logprobs": 20,
        });
        let reply = served.complete(&wild).fine();
        assert_eq!(reply["usage"]["completion_tokens"], 240);
        for choice in reply["choices"].as_array().expect("choices") {
            let tokens = choice["logprobs"]["tokens"].as_array().expect("tokens");
            assert!(
                tokens
                    .iter()
                    .all(|token| token.as_str().is_some_and(|t| t.len() == 1 || t == "<|endoftext|>")),
                "{tokens:?}"
            );
        }
    }
}

/// The tokens that a chat's log-probabilities name, put together.
fn named(content: &Value) -> String {
    content.as_array().into_iter().flatten().filter_map(|entry| entry["token"].as_str()).collect()
}

#[test]
fn log_probabilities_are_told_of_the_text_that_is_told() {
    let served = Served::new();
    let ask = json!({ "seed": 5, "max_tokens": 40, "ignore_eos": true, "logprobs": true });
    let whole = served.chat(&ask).fine();
    let text = whole["choices"][0]["message"]["content"].as_str().expect("text").to_string();
    assert_eq!(named(&whole["choices"][0]["logprobs"]["content"]), text);
    for at in [3, 7, 12, 20] {
        let stop = &text[at..at + 4];
        // One that begins like the other keeps more back than is left out in the end.
        let stops = json!([stop, format!("{}{}", &text[at - 2..at + 1], "never")]);
        let ask = merged(ask.clone(), &json!({ "stop": stops }));
        let reply = served.chat(&ask).fine();
        let told = reply["choices"][0]["message"]["content"].as_str().expect("text").to_string();
        let (log, cut) = (named(&reply["choices"][0]["logprobs"]["content"]), text.find(stop));
        assert_eq!(told.len(), cut.expect("it is there"));
        // A token that lies across the border is told as far as there is such a thing as a part of it: as a whole.
        assert!(log.starts_with(&told) && log.len() <= told.len() + 1, "{log:?} {told:?}");
        let events = served.chat(&merged(ask, &json!({ "stream": true }))).events();
        let (mut seen, mut named_so_far) = (String::new(), String::new());
        for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
            seen.push_str(choice["delta"]["content"].as_str().unwrap_or(""));
            named_so_far.push_str(&named(&choice["logprobs"]["content"]));
            assert!(named_so_far.len() <= seen.len() + 1, "{named_so_far:?} is ahead of {seen:?}");
        }
        assert_eq!((joined(&events, 0), named_so_far), (told, log));
    }
}

#[test]
fn the_lower_of_two_priorities_goes_first() {
    let setup = Setup { max_seqs: 1, pause: Duration::from_millis(5), ..Setup::default() };
    let served = Served::with(setup);
    let send = |priority: i32, tokens: usize| {
        let body = json!({ "prompt": "a", "max_tokens": tokens, "ignore_eos": true, "priority": priority });
        let mut stream = served.connect();
        stream
            .write_all(&request("POST", "/v1/completions", &[], body.to_string().as_bytes()))
            .expect("it is read");
        stream
    };
    let waiting = |count: f64| {
        let begin = Instant::now();
        while served.metric("exotherm_requests_waiting{model=\"tiny\"}") < count {
            assert!(begin.elapsed() < PATIENCE);
            sleep(Duration::from_millis(1));
        }
    };
    let first = send(0, 60);
    let begin = Instant::now();
    while served.metric("exotherm_requests_running{model=\"tiny\"}") == 0.0 {
        assert!(begin.elapsed() < PATIENCE);
    }
    let later = send(4, 30);
    waiting(1.0);
    let sooner = send(-4, 30);
    waiting(2.0);
    let queued = |stream| rest(stream).fine()["timings"]["queued_ms"].as_f64().expect("a time");
    let (later, sooner) = (queued(later), queued(sooner));
    assert!(sooner + 100.0 < later, "{sooner} ms and {later} ms");
    assert_eq!(rest(first).status, 200);
}

#[test]
fn timings_count_a_prompt_once() {
    let served = Served::new();
    let reply = served.chat(&json!({ "n": 3, "max_tokens": 4, "ignore_eos": true })).fine();
    assert_eq!(reply["timings"]["prompt_tokens"], reply["usage"]["prompt_tokens"]);
    assert_eq!(reply["timings"]["generated_tokens"], 12);
}
