//! Large bodies and slow ones: they wait for one another and keep nobody else out.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{PATIENCE, Reply, Served, Setup, request, user};
use exotherm_server::Config;
use serde_json::json;

const CHAT: &str = "/v1/chat/completions";

/// A chat of so many bytes.
fn chat_of(bytes: usize) -> Vec<u8> {
    let body = json!({ "messages": [user("hello")], "max_tokens": 1 }).to_string();
    let padded = format!("{body}{}", " ".repeat(bytes.saturating_sub(body.len())));
    request("POST", CHAT, &[], padded.as_bytes())
}

/// Sends all of a chat of so many bytes but the last, as far as the server takes it.
fn stall(served: &Served, bytes: usize) -> TcpStream {
    let mut stream = served.connect();
    stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let whole = chat_of(bytes);
    // Bodies that wait for their turn are not read.
    let _ = stream.write_all(&whole[..whole.len() - 1]);
    stream
}

/// Waits until so many bytes of the room are taken.
fn held_is(served: &Served, bytes: usize) {
    let begin = Instant::now();
    loop {
        let held = served.metric("exotherm_http_held_bytes");
        if held == bytes as f64 {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{held} are held, not {bytes}");
        sleep(Duration::from_millis(2));
    }
}

fn answer(mut stream: &TcpStream) -> Reply {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an orderly end");
    Reply::parse(&bytes)
}

#[test]
fn large_bodies_that_stall_keep_nobody_out() {
    let config = Config { body_silence: PATIENCE, ..Config::default() };
    let served = Served::with(Setup { config, ..Setup::default() });
    let stalled: Vec<TcpStream> = (0..33).map(|_| stall(&served, 2 << 20)).collect();
    // Three eighths of the room are theirs, and filled.
    held_is(&served, 24 << 20);
    for bytes in [100, 60_000] {
        assert_eq!(Reply::parse(&served.raw(&chat_of(bytes))).status, 200);
    }
    let reply = served.chat(&json!({ "max_tokens": 4, "logprobs": true, "top_logprobs": 20 }));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(served.post("/v1/embeddings", &json!({ "input": ["a", "b"] })).status, 200);
    drop(stalled);
}

/// Small ones take room for more than their beginnings only when more of them comes.
#[test]
fn small_bodies_that_begin_and_stall_keep_nobody_out() {
    let config = Config { max_bodies_bytes: 1 << 20, body_silence: PATIENCE, ..Config::default() };
    let served = Served::with(Setup { config, ..Setup::default() });
    let begun = |_| {
        let mut stream = served.connect();
        stream.write_all(&chat_of(60_000)[..1_000]).expect("it is taken");
        stream
    };
    let stalled: Vec<TcpStream> = (0..60).map(begun).collect();
    held_is(&served, 60 * 4096);
    assert_eq!(Reply::parse(&served.raw(&chat_of(100))).status, 200);
    drop(stalled);
}

#[test]
fn who_is_silent_in_the_middle_of_a_large_body_makes_room_for_who_waits() {
    let config = Config {
        max_bodies_bytes: 800_000,
        body_silence: Duration::from_millis(500),
        body_timeout: PATIENCE,
        ..Config::default()
    };
    let served = Served::with(Setup { config, ..Setup::default() });
    let begin = Instant::now();
    let stalled: Vec<TcpStream> = (0..3).map(|_| stall(&served, 100_000)).collect();
    // One more does not fit into what is there for them. It is not refused, and answered when they have been.
    assert_eq!(Reply::parse(&served.raw(&chat_of(100_000))).status, 200);
    assert!(begin.elapsed() >= Duration::from_millis(500));
    for stream in &stalled {
        answer(stream).fails(408, None, "body_timeout");
    }
    assert!(begin.elapsed() < PATIENCE / 2, "it is their silence that counts");
    held_is(&served, 0);
}

#[test]
fn what_finds_no_room_in_time_is_put_off() {
    let config = Config {
        max_bodies_bytes: 536_000,
        body_silence: PATIENCE,
        body_timeout: Duration::from_secs(1),
        ..Config::default()
    };
    let served = Served::with(Setup { config, ..Setup::default() });
    // There is room for one. When its time is over, it is the second's turn, and the third has waited long enough.
    let [first, second, third] = [(); 3].map(|()| {
        let stalled = stall(&served, 150_000);
        sleep(Duration::from_millis(300));
        stalled
    });
    answer(&first).fails(408, None, "body_timeout");
    let put_off = answer(&third);
    put_off.fails(503, None, "overloaded");
    assert!(put_off.header("retry-after").is_some());
    answer(&second).fails(408, None, "body_timeout");
    // Of what could never be had that is said at once.
    served.send("POST", CHAT, &[], &[b' '; 201_001]).fails(413, None, "request_too_large");
}

#[test]
fn bodies_in_chunks_are_small_until_they_are_large() {
    let served = Served::new();
    let chunked = |bytes: usize| {
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        let whole = chat_of(bytes);
        let body = whole.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
        let mut sent = head.into_bytes();
        for piece in whole[body..].chunks(10_000) {
            sent.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            sent.extend_from_slice(piece);
            sent.extend_from_slice(b"\r\n");
        }
        sent
    };
    for bytes in [100, 4_096, 4_097, 65_536, 65_537, 1_000_000] {
        let sent = [chunked(bytes), b"0\r\n\r\n".to_vec()].concat();
        assert_eq!(Reply::parse(&served.raw(&sent)).status, 200, "{bytes}");
    }
    held_is(&served, 0);
    for (bytes, taken) in [(1_000, 4 << 10), (50_000, 64 << 10), (100_000, 2 << 20)] {
        let mut open = served.connect();
        open.write_all(&chunked(bytes)).expect("it is taken");
        held_is(&served, taken);
    }
}
