//! Places, and what is told of requests in numbers.

mod common;

use std::time::{Duration, Instant};

use common::{Served, Setup, user};
use serde_json::json;

/// Whoever has heard of an end finds the place free.
#[test]
fn one_place_is_enough_for_one_request_after_another() {
    let served = Served::with(Setup { max_seqs: 1, queue: 0, ..Setup::default() });
    for _ in 0..40 {
        served.complete(&json!({ "max_tokens": 2 })).fine();
    }
    for _ in 0..20 {
        let reply = served.post("/v1/embeddings", &json!({ "input": ["a", "b", "c"] })).fine();
        assert_eq!(reply["data"].as_array().map(Vec::len), Some(3));
        assert_eq!(reply["timings"]["prompt_tokens"], reply["usage"]["prompt_tokens"]);
    }
}

/// Once begun, many texts wait for places instead of being put off halfway.
#[test]
fn many_texts_and_other_requests_take_turns() {
    let pause = Duration::from_millis(2);
    let served = Served::with(Setup { max_seqs: 2, queue: 2, pause, ..Setup::default() });
    std::thread::scope(|scope| {
        let body = json!({ "input": vec!["text"; 40] });
        let embeds = scope.spawn({
            let served = &served;
            move || served.post("/v1/embeddings", &body)
        });
        let mut answered = 0;
        while !embeds.is_finished() {
            let reply = served.complete(&json!({ "max_tokens": 2 }));
            assert!(reply.status == 200 || reply.status == 429, "{}", reply.text());
            answered += usize::from(reply.status == 200);
        }
        let reply = embeds.join().expect("it ends").fine();
        assert_eq!(reply["data"].as_array().map(Vec::len), Some(40));
        assert!(answered > 0, "others find places between them");
    });
    served.settle();
}

#[test]
fn outcomes_are_what_replies_say() {
    let served = Served::new();
    let outcome =
        |name: &str| served.metric(&format!("exotherm_requests_total{{model=\"tiny\",outcome=\"{name}\"}}"));
    let whole = served.complete(&json!({ "max_tokens": 40, "ignore_eos": true, "temperature": 0 })).fine();
    let text = whole["choices"][0]["text"].as_str().expect("a text").to_string();
    let stop: String = text.chars().skip(4).take(1).collect();
    let stopped = served
        .complete(&json!({ "max_tokens": 40, "ignore_eos": true, "temperature": 0, "stop": stop }))
        .fine();
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    served.settle();
    assert_eq!([outcome("length"), outcome("stop"), outcome("cancelled")], [1.0, 1.0, 0.0]);
    let refused = |code: &str| served.metric(&format!("exotherm_http_refusals_total{{code=\"{code}\"}}"));
    served.get("/nowhere").fails(404, None, "not_found");
    served.get("/v1/completions").fails(405, None, "method_not_allowed");
    served.get("/v1/models/none").fails(404, Some("model"), "model_not_found");
    served.chat(&json!({ "frequency": 1 })).fails(400, Some("frequency"), "unknown_parameter");
    for code in ["not_found", "method_not_allowed", "model_not_found", "unknown_parameter"] {
        assert_eq!(refused(code), 1.0, "{code}");
    }
}

#[test]
fn whoever_has_a_reply_finds_it_counted() {
    let served = Served::new();
    for i in 1..=30 {
        served.complete(&json!({ "max_tokens": 1, "ignore_eos": true })).fine();
        let text = served.get("/metrics").text();
        for line in [
            format!("exotherm_requests_total{{model=\"tiny\",outcome=\"length\"}} {i}"),
            format!("exotherm_tokens_total{{model=\"tiny\",kind=\"generated\"}} {i}"),
            "exotherm_requests_running{model=\"tiny\"} 0".to_string(),
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in {text}");
        }
    }
}

/// Choices that take turns are not as fast as if all were made at once.
#[test]
fn the_speed_of_choices_in_turn_is_that_of_the_clock() {
    let pause = Duration::from_millis(4);
    let served = Served::with(Setup { max_seqs: 2, pause, ..Setup::default() });
    let begin = Instant::now();
    let body = json!({ "n": 8, "max_tokens": 20, "ignore_eos": true, "messages": [user("hello")] });
    let reply = served.post("/v1/chat/completions", &body).fine();
    let took = begin.elapsed().as_secs_f64();
    let timings = &reply["timings"];
    let number = |name: &str| timings[name].as_f64().expect("a number");
    assert_eq!(number("generated_tokens"), 160.0);
    // All but the first wave's first tokens come in this time.
    let parts = number("queued_ms") + number("decode_ms");
    assert!(parts <= took * 1e3 && number("prompt_ms") <= took * 1e3, "{timings} in {took}");
    assert!(number("decode_tok_s") <= 160.0 / (20.0 * 4.0 * 0.004 * 0.9), "{timings}");
}
