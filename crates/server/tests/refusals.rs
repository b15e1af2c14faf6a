//! What cannot be done as asked: every refusal names what is wrong, in the shape that OpenAI's clients read.

mod common;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::{CTX, PATIENCE, Reply, Served, Setup, merged, request, user};
use exotherm_server::Config;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

#[test]
fn parameters_that_are_wrong_are_named() {
    let served = Served::new();
    let chat = [
        (json!({ "temperatur": 1 }), "temperatur", "unknown_parameter"),
        (json!({ "temperatur": null }), "temperatur", "unknown_parameter"),
        (json!({ "suffix": "x" }), "suffix", "unknown_parameter"),
        (json!({ "tools": [{ "type": "function" }] }), "tools", "unsupported_value"),
        (json!({ "response_format": { "type": "json_object" } }), "response_format", "unsupported_value"),
        (json!({ "store": true }), "store", "unsupported_value"),
        (json!({ "logit_bias": { "113": 1 } }), "logit_bias", "invalid_value"),
        (json!({ "logit_bias": { "-1": 1 } }), "logit_bias", "invalid_value"),
        (json!({ "logit_bias": { "x": 1 } }), "logit_bias", "invalid_value"),
        (json!({ "logit_bias": { "1": 101 } }), "logit_bias", "invalid_value"),
        (json!({ "logit_bias": { "1": "1" } }), "logit_bias", "invalid_type"),
        (json!({ "logit_bias": [1] }), "logit_bias", "invalid_type"),
        (json!({ "logprobs": 1 }), "logprobs", "invalid_type"),
        (json!({ "top_logprobs": 1 }), "top_logprobs", "invalid_value"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs", "invalid_value"),
        (json!({ "functions": [] }), "functions", "unsupported_parameter"),
        (json!({ "temperature": "1" }), "temperature", "invalid_type"),
        (json!({ "temperature": -0.1 }), "temperature", "invalid_value"),
        (json!({ "temperature": 2.1 }), "temperature", "invalid_value"),
        (json!({ "top_p": 1.5 }), "top_p", "invalid_value"),
        (json!({ "min_p": -1 }), "min_p", "invalid_value"),
        (json!({ "top_k": 1.5 }), "top_k", "invalid_type"),
        (json!({ "repetition_penalty": 0 }), "repetition_penalty", "invalid_value"),
        (json!({ "presence_penalty": 3 }), "presence_penalty", "invalid_value"),
        (json!({ "n": 0 }), "n", "invalid_value"),
        (json!({ "n": 1e30 }), "n", "invalid_value"),
        (json!({ "n": 100 }), "n", "invalid_value"),
        (json!({ "max_tokens": 9_223_372_036_854_775_808u64 }), "max_tokens", "invalid_value"),
        (json!({ "max_tokens": 0 }), "max_tokens", "invalid_value"),
        (json!({ "max_completion_tokens": 0 }), "max_completion_tokens", "invalid_value"),
        (json!({ "max_tokens": 5, "max_completion_tokens": 6 }), "max_tokens", "invalid_value"),
        (json!({ "max_tokens": CTX }), "messages", "context_length_exceeded"),
        (json!({ "seed": "x" }), "seed", "invalid_type"),
        (json!({ "stop": 1 }), "stop", "invalid_type"),
        (json!({ "stop": "" }), "stop", "invalid_value"),
        (json!({ "stop": vec!["x"; 100] }), "stop", "invalid_value"),
        (json!({ "stream": 1 }), "stream", "invalid_type"),
        (json!({ "stream_options": {} }), "stream_options", "invalid_value"),
        (json!({ "stream": true, "stream_options": { "x": 1 } }), "stream_options.x", "unknown_parameter"),
        (json!({ "user": 1 }), "user", "invalid_type"),
        (json!({ "metadata": 1 }), "metadata", "invalid_type"),
        (json!({ "messages": null }), "messages", "missing_required_parameter"),
        (json!({ "messages": [] }), "messages", "invalid_value"),
        (json!({ "messages": "hello" }), "messages", "invalid_type"),
        (json!({ "messages": ["hello"] }), "messages[0]", "invalid_type"),
        (json!({ "messages": [{ "content": "x" }] }), "messages[0].role", "missing_required_parameter"),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0].content", "missing_required_parameter"),
        (json!({ "messages": [{ "role": "tool", "content": "" }] }), "messages[0].role", "unsupported_value"),
        (
            json!({ "messages": [user("a"), { "role": "user", "content": [{ "type": "image_url" }] }] }),
            "messages[1].content[0].type",
            "unsupported_value",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": "a", "name": "b" }] }),
            "messages[0].name",
            "unsupported_parameter",
        ),
        (json!({ "messages": [user(&"x".repeat(CTX))] }), "messages", "context_length_exceeded"),
    ];
    for (extra, param, code) in chat {
        let reply = served.chat(&extra);
        assert!(reply.status == 400, "{extra}: {}", reply.text());
        reply.fails(400, Some(param), code);
    }
    served.settle();
}

#[test]
fn metadata_are_short_texts() {
    let served = Served::new();
    let long = "n".repeat(65);
    for (name, value, code) in [
        ("a", json!(1), "invalid_type"),
        ("a", Value::Null, "invalid_type"),
        ("a", json!("é".repeat(513)), "invalid_value"),
        (&long, json!("a"), "invalid_value"),
    ] {
        let reply = served.chat(&json!({ "metadata": { name: value } }));
        reply.fails(400, Some(&format!("metadata.{name}")), code);
    }
}

/// What would make the server hold much, or one thing twice.
#[test]
fn requests_stay_within_bounds() {
    let served = Served::new();
    // Known from its length alone: no token is longer than the one that ends texts.
    let long = "x".repeat(13 * CTX + 1);
    for (reply, param) in [
        (served.complete(&json!({ "prompt": long })), "prompt"),
        (served.chat(&json!({ "messages": [user(&long[CTX..]), user(&long[CTX..])] })), "messages"),
        (served.post("/v1/embeddings", &json!({ "input": ["x", long] })), "input[1]"),
    ] {
        reply.fails(400, Some(param), "context_length_exceeded");
        assert!(reply.text().contains("a token is 13 bytes at most"), "{}", reply.text());
    }
    let many: Vec<Value> = (0..=CTX).map(|_| user("")).collect();
    served.chat(&json!({ "messages": many })).fails(400, Some("messages"), "context_length_exceeded");
    let much = served.complete(&json!({ "max_tokens": CTX }));
    much.fails(400, Some("prompt"), "context_length_exceeded");
    assert!(!much.text().contains("--"), "no options of a command line: {}", much.text());
    let written = served.chat(&json!({ "max_tokens": 16.0 }));
    written.fails(400, Some("max_tokens"), "invalid_type");
    assert!(written.text().contains("16.0"), "{}", written.text());
    let config = Config { max_bodies_bytes: 56_000, ..Config::default() };
    let small = Served::with(Setup { config, ..Setup::default() });
    let many = small.post("/v1/embeddings", &json!({ "input": vec!["x"; 100] }));
    many.fails(400, Some("input"), "invalid_value");
    small.post("/v1/embeddings", &json!({ "input": vec!["x"; 20] })).fine();
    for key in ["01", "+1"] {
        served.chat(&json!({ "logit_bias": { key: 1 } })).fails(400, Some("logit_bias"), "invalid_value");
    }
    let logs = json!({ "n": 24, "logprobs": true, "top_logprobs": 20, "ignore_eos": true });
    served.chat(&merged(logs.clone(), &json!({ "max_tokens": 230 }))).fails(
        400,
        Some("logprobs"),
        "invalid_value",
    );
    // Who does not say how much gets as much as can be told: 100,000 numbers of 24 answers, 21 for each token.
    let told = served.chat(&logs).fine();
    assert_eq!(told["usage"]["completion_tokens"], 24 * (100_000 / 21 / 24));
    // Of prompts it is told at once, in a stream, too; what a stream tells of its answer is not.
    let logs = json!({
        "prompt": vec!["x".repeat(CTX); 24], "logprobs": 20, "echo": true, "stream": true, "max_tokens": 0
    });
    served.complete(&logs).fails(400, Some("logprobs"), "invalid_value");
    served.complete(&merged(logs, &json!({ "echo": false }))).events();
    let name = "x".repeat(1000);
    let reply = served.chat(&json!({ &name: 1 }));
    assert!(reply.status == 400 && reply.text().len() < 1000, "{}", reply.text().len());
    served.settle();
}

#[test]
fn completions_have_their_own() {
    let served = Served::new();
    let completions = [
        (json!({ "suffix": "x" }), "suffix", "unsupported_parameter"),
        (json!({ "best_of": 1, "n": 2 }), "best_of", "invalid_value"),
        (json!({ "best_of": 2, "stream": true }), "best_of", "invalid_value"),
        (json!({ "best_of": 21 }), "best_of", "invalid_value"),
        (json!({ "priority": 5 }), "priority", "invalid_value"),
        (json!({ "priority": 0.5 }), "priority", "invalid_type"),
        (json!({ "logprobs": 21 }), "logprobs", "invalid_value"),
        (json!({ "logprobs": true }), "logprobs", "invalid_type"),
        (json!({ "max_tokens": -1 }), "max_tokens", "invalid_value"),
        (json!({ "top_logprobs": 1 }), "top_logprobs", "unknown_parameter"),
        (json!({ "messages": [] }), "messages", "unknown_parameter"),
        (json!({ "max_completion_tokens": 5 }), "max_completion_tokens", "unknown_parameter"),
        (json!({ "prompt": null }), "prompt", "missing_required_parameter"),
        (json!({ "prompt": "" }), "prompt", "invalid_value"),
        (json!({ "prompt": [] }), "prompt", "invalid_value"),
        (json!({ "prompt": {} }), "prompt", "invalid_type"),
        (json!({ "prompt": [1, "a"] }), "prompt[1]", "invalid_type"),
        (json!({ "prompt": ["a", 1] }), "prompt[1]", "invalid_type"),
        (json!({ "prompt": [113] }), "prompt[0]", "invalid_value"),
        (json!({ "prompt": [-1] }), "prompt[0]", "invalid_value"),
        (json!({ "prompt": [1.5] }), "prompt[0]", "invalid_type"),
        (json!({ "prompt": [[1], [1, true]] }), "prompt[1][1]", "invalid_type"),
        (json!({ "prompt": ["a", ""] }), "prompt[1]", "invalid_value"),
        (json!({ "prompt": ["a", "b", "x".repeat(CTX)] }), "prompt[2]", "context_length_exceeded"),
        (json!({ "prompt": ["a"], "max_tokens": CTX }), "prompt", "context_length_exceeded"),
        (json!({ "prompt": vec!["a"; 33] }), "prompt", "invalid_value"),
        (json!({ "prompt": vec!["a"; 20], "n": 2 }), "prompt", "invalid_value"),
        (json!({ "prompt": "é" }), "prompt", "invalid_value"),
        (json!({ "echo": "yes" }), "echo", "invalid_type"),
    ];
    for (extra, param, code) in completions {
        let reply = served.complete(&extra);
        assert!(reply.status == 400, "{extra}: {}", reply.text());
        reply.fails(400, Some(param), code);
    }
    assert_eq!(served.post("/tokenize", &json!({ "content": "x", "with_pieces": false })).status, 200);
    let pieces = json!({ "content": "x", "with_pieces": true });
    served.post("/tokenize", &pieces).fails(400, Some("with_pieces"), "unsupported_value");
    served.post("/tokenize", &json!({})).fails(400, Some("content"), "missing_required_parameter");
    served.post("/tokenize", &json!({ "content": "x", "y": 1 })).fails(400, Some("y"), "unknown_parameter");
    let unknown = json!({ "tokens": [1, 113] });
    served.post("/detokenize", &unknown).fails(400, Some("tokens[1]"), "invalid_value");
    served.settle();
}

#[test]
fn models_paths_and_methods_that_are_not_there() {
    let served = Served::new();
    let absent = json!({ "model": "absent" });
    served.chat(&absent).fails(404, Some("model"), "model_not_found");
    served.complete(&absent).fails(404, Some("model"), "model_not_found");
    served.chat(&json!({ "model": 1 })).fails(400, Some("model"), "invalid_type");
    assert_eq!(served.chat(&json!({ "model": null, "max_tokens": 1 })).status, 200, "there is only one");
    served.get("/v1/nothing").fails(404, None, "not_found");
    served.get("/../../etc/passwd").fails(404, None, "not_found");
    served.get("/v1/models/%ff").fails(400, None, "invalid_path");
    served.get(CHAT).fails(405, None, "method_not_allowed");
    served.send("DELETE", "/v1/models", &[], b"").fails(405, None, "method_not_allowed");
    assert_eq!(served.get(CHAT).header("allow"), Some("POST"));
    let plain = Served::with(Setup { template: false, ..Setup::default() });
    plain.chat(&json!({})).fails(400, Some("model"), "no_chat_template");
    assert_eq!(plain.complete(&json!({ "max_tokens": 1 })).status, 200);
}

#[test]
fn bodies_that_are_no_json_are_refused_without_a_guess() {
    let served = Served::new();
    let deep = "[".repeat(50_000);
    for body in ["", "{", "null", "[]", "{\"model\":}", "{\"a\":1}{", "\"x\"", "\u{1}", &deep] {
        served.send("POST", CHAT, &[], body.as_bytes()).fails(400, None, "invalid_json");
    }
    served.send("POST", COMPLETIONS, &[], &[b'{', 0xff, b'}']).fails(400, None, "invalid_json");
    for (body, name) in [
        (r#"{"messages":[],"max_tokens":1,"max_tokens":2}"#, "max_tokens"),
        (r#"{"messages":[{"role":"user","role":"system","content":""}]}"#, "messages[0].role"),
        (r#"{"messages":[{"role":"user","content":""}],"logit_bias":{"5":1,"5":2}}"#, "logit_bias.5"),
    ] {
        served.send("POST", CHAT, &[], body.as_bytes()).fails(400, Some(name), "duplicate_parameter");
    }
    // What curl sends if it is not told otherwise.
    let body = json!({ "messages": [user("hi")], "max_tokens": 1 }).to_string();
    let form = "content-type: application/x-www-form-urlencoded";
    assert_eq!(served.send("POST", CHAT, &[form], body.as_bytes()).status, 200);
    // What is no HTTP gets an answer and no panic.
    for bytes in [&b"GARBAGE\r\n\r\n"[..], b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n"] {
        assert!(served.raw(bytes).starts_with(b"HTTP/1.1 400"));
    }
}

#[test]
fn a_lenient_server_warns_instead() {
    let served =
        Served::with(Setup { config: Config { lenient: true, ..Config::default() }, ..Setup::default() });
    let extra = json!({ "temperatur": 1, "tools": [1], "bad\nname é": 2, "max_tokens": 1 });
    let reply = served.chat(&extra);
    let warning = reply.header("x-exotherm-warning").expect("a warning").to_string();
    assert_eq!(reply.status, 200, "{}", reply.text());
    ["temperatur", "tools", "bad?name ?"]
        .iter()
        .for_each(|name| assert!(warning.contains(name), "{warning}"));
    let streamed = served.chat(&merged(extra, &json!({ "stream": true })));
    assert!(streamed.header("x-exotherm-warning").is_some());
    let many: serde_json::Map<String, Value> = (0..60).map(|i| (format!("x{i}"), json!(1))).collect();
    let reply = served.chat(&merged(json!({ "max_tokens": 1 }), &Value::Object(many)));
    let warning = reply.header("x-exotherm-warning").expect("a warning");
    assert!(warning.contains("x15, and others") && !warning.contains("x16"), "{warning}");
    served.chat(&json!({ "temperature": 9 })).fails(400, Some("temperature"), "invalid_value");
    let reply = served.post("/tokenize", &json!({ "content": "x", "y": 1 }));
    assert_eq!((reply.status, reply.header("x-exotherm-warning")), (200, Some("ignored parameters: y")));
    assert_eq!(served.chat(&json!({ "max_tokens": 1 })).header("x-exotherm-warning"), None);
}

#[test]
fn too_large_a_body_is_told_so_without_a_reset() {
    let config = Config { max_body_bytes: 10_000, ..Config::default() };
    let served = Served::with(Setup { config, ..Setup::default() });
    let large = vec![b' '; 3_000_000];
    served.send("POST", CHAT, &[], &large).fails(413, None, "request_too_large");
    // In chunks, without a length told beforehand.
    let mut chunked = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for piece in large.chunks(60_000) {
        chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        chunked.extend_from_slice(piece);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    Reply::parse(&served.raw(&chunked)).fails(413, None, "request_too_large");
    // A client that asks first is told before it sends anything.
    let head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 99999999999\r\n\r\n";
    Reply::parse(&served.raw(head)).fails(413, None, "request_too_large");
    assert_eq!(served.complete(&json!({ "max_tokens": 1 })).status, 200);
}

#[test]
fn heads_that_are_too_large_are_refused() {
    let served = Served::new();
    let header = format!("x-long: {}", "y".repeat(200_000));
    let mut stream = served.connect();
    stream.write_all(&request("GET", "/health", &[&header], b"")).expect("it is taken");
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).expect("an orderly end");
    assert!(reply.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&reply));
    assert_eq!(served.get("/health").status, 200);
}

#[test]
fn slow_clients_are_not_waited_for() {
    let config = Config {
        header_timeout: Duration::from_millis(200),
        body_timeout: Duration::from_millis(200),
        ..Config::default()
    };
    let served = Served::with(Setup { config, ..Setup::default() });
    let begin = Instant::now();
    let mut silent = served.connect();
    let mut half = served.connect();
    half.write_all(b"GET /health HTT").expect("it is read");
    let mut trickle = served.connect();
    trickle
        .write_all(b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        .expect("it is read");
    let mut reply = Vec::new();
    trickle.read_to_end(&mut reply).expect("an orderly end");
    Reply::parse(&reply).fails(408, None, "body_timeout");
    for stream in [&mut silent, &mut half] {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(begin.elapsed() < PATIENCE);
    let body = json!({ "content": "x" }).to_string();
    let mut cut = served.connect();
    cut.write_all(&request("POST", "/tokenize", &[], body.as_bytes())[..90]).expect("it is read");
    drop(cut);
    assert_eq!(served.get("/health").status, 200);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let setup = Setup { max_seqs: 1, queue: 1, pause: Duration::from_millis(20), ..Setup::default() };
    let served = Served::with(setup);
    let long = json!({ "max_tokens": 100, "ignore_eos": true, "stream": true });
    let body = merged(json!({ "messages": [user("hello")] }), &long).to_string();
    let mut streams: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = served.connect();
            stream.write_all(&request("POST", CHAT, &[], body.as_bytes())).expect("it is read");
            stream
        })
        .collect();
    // Both have begun when both have an answer's head.
    for stream in &mut streams {
        assert!(stream.read(&mut [0; 64]).is_ok_and(|n| n > 0));
    }
    let refused = served.chat(&json!({ "max_tokens": 1 }));
    refused.fails(429, None, "queue_full");
    assert_eq!(refused.header("retry-after"), Some("1"));
    drop(streams);
    served.settle();
    assert_eq!(served.chat(&json!({ "max_tokens": 1 })).status, 200);
    served.chat(&json!({ "n": 3 })).fails(400, Some("n"), "invalid_value");
}

#[test]
fn keys_open_what_is_locked() {
    let config = Config { api_keys: vec!["secret".into(), "other".into()], ..Config::default() };
    let served = Served::with(Setup { config, ..Setup::default() });
    for path in ["/", "/health", "/ready", "/openapi.json"] {
        assert_eq!(served.get(path).status, 200, "{path}");
    }
    for path in ["/v1/models", "/metrics", "/v1/models/tiny", "/nothing"] {
        let refused = served.get(path);
        refused.fails(401, None, "invalid_api_key");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        let opened = served.send("GET", path, &["authorization: Bearer other"], b"");
        assert_eq!(opened.status, if path == "/nothing" { 404 } else { 200 }, "{path}");
    }
    served.chat(&json!({})).fails(401, None, "invalid_api_key");
    served.send("GET", "/v1/models", &["authorization: Bearer secre"], b"").fails(
        401,
        None,
        "invalid_api_key",
    );
}

#[test]
fn pages_of_other_origins_need_leave() {
    let served = Served::new();
    let from = |origin: &str| served.send("GET", "/v1/models", &[&format!("origin: {origin}")], b"");
    from("https://evil.example").fails(403, None, "origin_not_allowed");
    assert_eq!(from("http://127.0.0.1").status, 200);
    let rebound = b"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    Reply::parse(&served.raw(rebound)).fails(403, None, "host_not_allowed");
    // Whatever it listens at: a page whose name is made to point here is no page of its own.
    let named = |hosts: &[&str]| Setup {
        config: Config { hosts: hosts.iter().map(|h| h.to_string()).collect(), ..Config::default() },
        ..Setup::default()
    };
    let own = Served::with(named(&["evil.example"]));
    assert_eq!(Reply::parse(&own.raw(rebound)).status, 200, "it was given this name");
    let config =
        Config { cors: vec!["https://mine.example".into()], api_keys: vec!["k".into()], ..Config::default() };
    let served = Served::with(Setup { config, ..Setup::default() });
    let asks = ["origin: https://mine.example", "access-control-request-method: POST"];
    let leave = served.send("OPTIONS", CHAT, &asks, b"");
    assert_eq!(
        (leave.status, leave.header("access-control-allow-origin")),
        (204, Some("https://mine.example"))
    );
    assert!(leave.header("access-control-allow-headers").is_some_and(|h| h.contains("authorization")));
    // What the official client for browsers sends along.
    let own =
        "access-control-request-headers: authorization,content-type,x-stainless-lang,x-stainless-retry-count";
    let leave = served.send("OPTIONS", CHAT, &[&asks[..], &[own]].concat(), b"");
    let allowed = leave.header("access-control-allow-headers").expect("some");
    assert!(
        ["authorization", "x-stainless-lang", "x-stainless-retry-count"].iter().all(|h| allowed.contains(h))
    );
    let asks = ["origin: https://mine.example", "authorization: Bearer k"];
    let used = served.send("GET", "/v1/models", &asks, b"");
    assert_eq!(
        (used.status, used.header("access-control-allow-origin")),
        (200, Some("https://mine.example"))
    );
}

#[test]
fn random_requests_never_break_it() {
    let served = Served::new();
    let mut random = Random(99);
    for round in 0..500 {
        let path = [CHAT, COMPLETIONS, "/v1/embeddings", "/tokenize", "/detokenize"][random.below(5)];
        let body = random.body().to_string();
        let reply = served.send("POST", path, &[], body.as_bytes());
        assert!([200, 400, 404].contains(&reply.status), "{round} {path} {body}: {}", reply.text());
        if reply.status != 200 {
            assert!(reply.json()["error"]["message"].is_string(), "{body}");
        }
    }
    served.settle();
}

/// A small generator of requests that are almost right.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }

    fn body(&mut self) -> Value {
        let mut body = json!({
            "messages": [user("hi")], "prompt": "hi", "content": "hi", "tokens": [1, 2], "max_tokens": 3, "input": "hi",
        });
        // One endpoint knows what another does not: most requests keep only some of the fields.
        for name in ["messages", "prompt", "content", "tokens", "max_tokens", "input"] {
            if self.below(2) == 0 {
                body.as_object_mut().map(|body| body.remove(name));
            }
        }
        const NAMES: [&str; 28] = [
            "input",
            "encoding_format",
            "model",
            "messages",
            "prompt",
            "content",
            "tokens",
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "n",
            "best_of",
            "seed",
            "stop",
            "stream",
            "stream_options",
            "echo",
            "logprobs",
            "logit_bias",
            "user",
            "metadata",
            "response_format",
            "frequency_penalty",
            "repetition_penalty",
            "receipt",
            "unknown",
        ];
        for _ in 0..self.below(4) {
            body[NAMES[self.below(NAMES.len())]] = self.value(3);
        }
        body
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 9 } else { 12 }) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(self.below(5)),
            3 => json!(-(self.below(3) as i64)),
            4 => json!(self.below(1000) as f64 / 500.0),
            5 => json!(u64::MAX),
            6 => json!(1e300),
            7 => json!("x".repeat(self.below(400))),
            8 => json!(["tiny", "text", "\u{0}é", "user", ""][self.below(5)]),
            9 | 10 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
            _ => {
                let name = ["role", "content", "type", "text", "include_usage", "7"][self.below(6)];
                json!({ name: self.value(depth - 1), "role": "user" })
            }
        }
    }
}
