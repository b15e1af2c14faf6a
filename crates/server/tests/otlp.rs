//! Spans of requests, as a collector of OpenTelemetry's gets them.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::{PATIENCE, Reply, Served, request, user};
use exotherm_observe::otlp::{Collector, Exporter};
use serde_json::{Value, json};

/// A collector on a port of its own, which hands on the spans of every message that it takes.
fn collector() -> (String, Receiver<Vec<Value>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            while let Some((head, body)) = message(&mut stream) {
                assert!(head.starts_with("POST /v1/traces HTTP/1.1"), "{head}");
                assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
                let body: Value = serde_json::from_slice(&body).expect("JSON");
                if tell.send(spans(&body)).is_err() {
                    return;
                }
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
                );
            }
        }
    });
    (address, told)
}

/// A request's head and body; nothing when the client has gone.
fn message(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length:").and_then(|length| length.trim().parse().ok()));
    let mut body = bytes[end + 4..].to_vec();
    let begun = body.len();
    body.resize(length.expect("a length"), 0);
    stream.read_exact(&mut body[begun..]).ok()?;
    Some((head, body))
}

fn spans(message: &Value) -> Vec<Value> {
    let resource = &message["resourceSpans"][0];
    assert_eq!(attributes(&resource["resource"])["service.name"], json!("exotherm"));
    resource["scopeSpans"][0]["spans"].as_array().expect("spans").clone()
}

/// What is told of a span, each as its own kind of value.
fn attributes(span: &Value) -> BTreeMap<String, Value> {
    let pair = |attribute: &Value| {
        let (_, value) =
            attribute["value"].as_object().and_then(|value| value.iter().next()).expect("a value");
        (attribute["key"].as_str().expect("a key").to_string(), value.clone())
    };
    span["attributes"].as_array().expect("attributes").iter().map(pair).collect()
}

/// The span of a request, when it has come, and those that are parts of it.
fn of_request(told: &Receiver<Vec<Value>>, seen: &mut Vec<Value>, reply: &Reply) -> (Value, Vec<Value>) {
    let id = json!(reply.header("x-request-id").expect("a name"));
    let is_it = |span: &&Value| attributes(span).get("id") == Some(&id);
    let begin = Instant::now();
    loop {
        if let Some(found) = seen.iter().find(is_it) {
            let parts = seen.iter().filter(|span| span["parentSpanId"] == found["spanId"]).cloned();
            return (found.clone(), parts.collect());
        }
        assert!(begin.elapsed() < PATIENCE, "no span of {id}");
        if let Ok(more) = told.recv_timeout(Duration::from_millis(100)) {
            seen.extend(more);
        }
    }
}

fn nanos(span: &Value, end: &str) -> u128 {
    span[end].as_str().and_then(|text| text.parse().ok()).expect("nanoseconds in text")
}

#[test]
fn a_request_is_a_span_with_its_name_and_its_parts() {
    let (address, told) = collector();
    let exporter = Exporter::start(Collector::new(&address).expect("an address")).expect("a thread");
    exotherm_observe::subscribe_and_send(&exporter);
    let served = Served::new();
    let mut seen = Vec::new();

    let parent = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let body = json!({ "messages": [user("hello")], "max_tokens": 4, "ignore_eos": true, "stream": true });
    let reply = served.send("POST", "/v1/chat/completions", &[parent], body.to_string().as_bytes());
    assert_eq!(reply.status, 200);
    let (span, parts) = of_request(&told, &mut seen, &reply);
    assert_eq!(span["name"], "POST /v1/chat/completions");
    assert_eq!((&span["kind"], &span["status"]), (&json!(2), &json!({})));
    assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c", "it is a part of its client's trace");
    assert_eq!(span["parentSpanId"], "b7ad6b7169203331");
    let facts = attributes(&span);
    assert_eq!(facts["http.response.status_code"], "200");
    assert_eq!(facts["gen_ai.request.model"], "tiny");
    assert_eq!(facts["gen_ai.usage.output_tokens"], "4");
    assert_eq!(facts["finish"], "length");
    let names: Vec<&str> = parts.iter().filter_map(|part| part["name"].as_str()).collect();
    assert_eq!(names, ["read", "queued", "prompt", "decode"]);
    for part in &parts {
        assert_eq!(part["traceId"], span["traceId"]);
        assert!(nanos(part, "startTimeUnixNano") >= nanos(&span, "startTimeUnixNano"), "{part}");
        assert!(nanos(part, "endTimeUnixNano") >= nanos(part, "startTimeUnixNano"), "{part}");
        assert!(nanos(part, "endTimeUnixNano") <= nanos(&span, "endTimeUnixNano") + 5_000_000, "{part}");
    }

    let reply = served.complete(&json!({ "temperature": 9 }));
    assert_eq!(reply.status, 400);
    let (span, _) = of_request(&told, &mut seen, &reply);
    assert!(attributes(&span)["error"].as_str().is_some_and(|error| error.contains("temperature")));
    assert_eq!(span["status"], json!({}), "what a client did wrong is no error of the server");
    assert!(span.get("parentSpanId").is_none(), "its trace is its own");

    let unwanted = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let hidden = served.send("GET", "/v1/models", &[unwanted], b"");
    let (_, _) = of_request(&told, &mut seen, &served.get("/health"));
    let hidden = json!(hidden.header("x-request-id").expect("a name"));
    assert!(seen.iter().all(|span| attributes(span).get("id") != Some(&hidden)), "nobody wants to see it");
    assert_eq!(exporter.dropped(), 0);
}

#[test]
fn a_collector_that_is_slow_or_gone_costs_spans_and_nothing_else() {
    // One takes connections and never says a word, one is not there at all.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let gone = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    for address in [silent.local_addr().expect("an address"), gone] {
        let exporter = Exporter::start(Collector::new(&format!("http://{address}")).expect("an address"));
        let exporter = exporter.expect("a thread");
        let subscriber = tracing_subscriber::layer::SubscriberExt::with(
            tracing_subscriber::Registry::default(),
            exporter.layer(),
        );
        let begin = Instant::now();
        tracing::subscriber::with_default(subscriber, || {
            for i in 0..10_000 {
                drop(tracing::info_span!("request", i));
            }
        });
        // More than may wait, in no more time than making them takes; nothing waits for the collector.
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        assert!(exporter.dropped() > 5_000, "{}", exporter.dropped());
        let begin = Instant::now();
        exporter.flush(Duration::from_millis(200));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
}

#[test]
fn requests_are_answered_whether_or_not_anybody_watches() {
    let served = Served::new();
    let bytes = request("GET", "/health", &["traceparent: nonsense"], b"");
    assert_eq!(Reply::parse(&served.raw(&bytes)).status, 200);
}
