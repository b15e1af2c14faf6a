//! What a request gets that is as it should be.

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{CTX, Served, Setup, joined, merged, user};
use serde_json::{Value, json};

fn content(reply: &Value) -> &str {
    reply["choices"][0]["message"]["content"].as_str().expect("a text")
}

fn text(reply: &Value) -> &str {
    reply["choices"][0]["text"].as_str().expect("a text")
}

/// Sampled, but always the same.
fn seeded(extra: &Value) -> Value {
    merged(json!({ "seed": 5, "max_tokens": 40, "ignore_eos": true }), extra)
}

#[test]
fn a_chat_has_the_shape_that_clients_know() {
    let served = Served::new();
    let reply = served.chat(&json!({ "max_tokens": 5, "ignore_eos": true, "seed": 1 })).fine();
    assert_eq!((&reply["object"], &reply["model"]), (&json!("chat.completion"), &json!("tiny")));
    assert!(reply["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    assert!(reply["created"].as_u64().is_some_and(|s| s > 1_700_000_000));
    let choice = &reply["choices"][0];
    assert_eq!(
        (&choice["index"], &choice["finish_reason"], &choice["logprobs"]),
        (&json!(0), &json!("length"), &Value::Null)
    );
    assert_eq!(choice["message"]["role"], "assistant");
    // "[user] hello\n[bot]" in single characters.
    assert_eq!(reply["usage"]["prompt_tokens"], 18);
    assert_eq!(
        (&reply["usage"]["completion_tokens"], &reply["usage"]["total_tokens"]),
        (&json!(5), &json!(23))
    );
    for name in ["queued_ms", "prompt_ms", "decode_ms", "prompt_tok_s", "decode_tok_s"] {
        assert!(reply["timings"][name].as_f64().is_some_and(|ms| ms >= 0.0), "{name}: {reply}");
    }
    assert_eq!(
        (&reply["timings"]["cached_tokens"], &reply["timings"]["generated_tokens"]),
        (&json!(0), &json!(5))
    );
    assert_eq!(reply.get("receipt"), None);
    // Without a limit, the context is the limit.
    let long = served.chat(&json!({ "ignore_eos": true })).fine();
    assert_eq!(long["usage"]["total_tokens"], CTX);
}

#[test]
fn a_completion_continues_texts_and_tokens() {
    let served = Served::new();
    let one = served.complete(&seeded(&json!({}))).fine();
    assert_eq!((&one["object"], &one["usage"]["prompt_tokens"]), (&json!("text_completion"), &json!(5)));
    let ids = served.post("/tokenize", &json!({ "model": "tiny", "content": "hello" })).fine();
    let same = served.complete(&seeded(&json!({ "prompt": ids["tokens"] }))).fine();
    assert_eq!(text(&same), text(&one));
    let many =
        served.complete(&seeded(&json!({ "prompt": ["hello", "other"], "n": 2, "echo": true }))).fine();
    let texts: Vec<&str> = many["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .map(|c| c["text"].as_str().expect("text"))
        .collect();
    assert_eq!(texts.len(), 4);
    assert_eq!(texts[0], format!("hello{}", text(&one)));
    assert!(texts[1].starts_with("hello") && texts[2].starts_with("other") && texts[3].starts_with("other"));
    assert_ne!(texts[0], texts[1], "choices of a prompt have seeds of their own");
    assert_eq!(many["usage"]["prompt_tokens"], 10);
    assert_eq!(many["usage"]["completion_tokens"], 160);
    let lists = served.complete(&seeded(&json!({ "prompt": [[73, 70], [73]] }))).fine();
    assert_eq!(lists["choices"].as_array().map(Vec::len), Some(2));
    // OpenAI's default.
    assert_eq!(served.complete(&json!({ "ignore_eos": true })).fine()["usage"]["completion_tokens"], 16);
}

#[test]
fn a_stream_says_the_same_in_events() {
    let served = Served::new();
    let whole = served.chat(&seeded(&json!({}))).fine();
    let events = served.chat(&seeded(&json!({ "stream": true }))).events();
    assert_eq!(joined(&events, 0), content(&whole));
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk" && e["id"] == events[0]["id"]));
    assert!(
        events
            .iter()
            .all(|e| e.get("usage").is_none() && e["choices"].as_array().is_some_and(|c| c.len() == 1))
    );
    let last = events.last().expect("events");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert!(last["timings"]["decode_ms"].is_number());

    let options = json!({ "stream": true, "stream_options": { "include_usage": true }, "n": 2 });
    let events = served.complete(&seeded(&options)).events();
    let (usage, others) = events.split_last().expect("events");
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(80)));
    assert!(others.iter().all(|e| e["usage"].is_null() && e.get("usage").is_some()));
    let whole = served.complete(&seeded(&json!({ "n": 2 }))).fine();
    for i in 0..2 {
        assert_eq!(joined(&events, i), whole["choices"][i]["text"].as_str().expect("text"));
    }
    let events = served.complete(&seeded(&json!({ "stream": true, "echo": true }))).events();
    assert!(joined(&events, 0).starts_with("hello"));
}

#[test]
fn stop_strings_end_an_answer_wherever_tokens_begin() {
    let served = Served::new();
    let whole = served.complete(&seeded(&json!({}))).fine();
    let whole = text(&whole);
    // Three characters are two tokens at least.
    let stop = &whole[10..13];
    let at = whole.find(stop).expect("it is in there");
    for stop in [json!(stop), json!(["never comes", stop])] {
        let reply = served.complete(&seeded(&json!({ "stop": stop }))).fine();
        assert_eq!(text(&reply), &whole[..at]);
        assert_eq!(reply["choices"][0]["finish_reason"], "stop");
        let events = served.complete(&seeded(&json!({ "stop": stop, "stream": true }))).events();
        assert_eq!(joined(&events, 0), whole[..at]);
    }
    served.settle();
}

#[test]
fn equal_seeds_give_equal_bytes_alone_and_among_sixteen() {
    let served = Served::new();
    let ask = |i: u64| {
        let extra = json!({ "seed": i % 4, "messages": [user(&format!("question {}", i % 4))], "stream": i.is_multiple_of(2) });
        let reply = served.chat(&seeded(&extra));
        if i.is_multiple_of(2) { joined(&reply.events(), 0) } else { content(&reply.fine()).to_string() }
    };
    let alone: Vec<String> = (0..4).map(ask).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|i| scope.spawn(move || ask(i))).collect();
        threads.into_iter().map(|t| t.join().expect("an answer")).collect()
    });
    for (i, text) in together.iter().enumerate() {
        assert_eq!(text, &alone[i % 4]);
    }
    assert_ne!(alone[0], alone[1]);
    served.settle();
}

#[test]
fn parameters_of_sampling_do_what_they_say() {
    let served = Served::new();
    let greedy = served.complete(&json!({ "temperature": 0, "max_tokens": 30, "ignore_eos": true })).fine();
    for extra in
        [json!({ "top_k": 1 }), json!({ "top_p": 0 }), json!({ "min_p": 1 }), json!({ "temperature": 1e-6 })]
    {
        let request = merged(json!({ "max_tokens": 30, "ignore_eos": true }), &extra);
        assert_eq!(text(&served.complete(&request).fine()), text(&greedy), "{extra}");
    }
    for extra in [
        json!({ "frequency_penalty": 2 }),
        json!({ "presence_penalty": 2 }),
        json!({ "repetition_penalty": 2 }),
    ] {
        let request = merged(json!({ "temperature": 0, "max_tokens": 30, "ignore_eos": true }), &extra);
        assert_ne!(text(&served.complete(&request).fine()), text(&greedy), "{extra}");
    }
    let unseeded =
        || text(&served.complete(&json!({ "max_tokens": 30, "ignore_eos": true })).fine()).to_string();
    assert_ne!(unseeded(), unseeded(), "without a seed every answer is a new one");
}

#[test]
fn a_receipt_says_what_made_the_answer() {
    let served = Served::new();
    let request = json!({ "receipt": true, "max_tokens": 20, "ignore_eos": true });
    let reply = served.chat(&request).fine();
    let receipt = &reply["receipt"];
    assert_eq!(receipt["template_sha256"].as_str().map(str::len), Some(64));
    assert_eq!((&receipt["kv_type"], &receipt["cached_tokens"]), (&json!("f16"), &json!([0])));
    assert_eq!(
        receipt["kernels"],
        json!({ "backend": common::backend_name(), "level": "scalar", "threads": 1 })
    );
    let again = served.chat(&merged(request, &json!({ "seed": receipt["seed"] }))).fine();
    assert_eq!(content(&again), content(&reply), "the receipt's seed makes the answer again");
    let events = served.chat(&json!({ "receipt": true, "max_tokens": 2, "stream": true })).events();
    assert!(events.last().is_some_and(|e| e["receipt"]["seed"].is_number()));
}

#[test]
fn what_clients_send_along_is_taken() {
    let served = Served::new();
    let extra = json!({
        "user": "u", "metadata": { "a": "b", "n".repeat(64): "é".repeat(512) }, "store": false, "response_format": { "type": "text" },
        "service_tier": "auto", "logprobs": null, "tools": [], "parallel_tool_calls": true, "modalities": ["text"],
        "max_completion_tokens": 3, "seed": -7, "stop": null, "n": 1,
        "messages": [
            { "role": "developer", "content": "be brief" },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
            { "role": "assistant", "content": "c", "refusal": null, "annotations": [], "tool_calls": null },
            user("d"),
        ],
    });
    let reply = served.chat(&extra).fine();
    let prompt = "[system] be brief\n[user] ab\n[assistant] c\n[user] d\n[bot]";
    assert_eq!(reply["usage"]["prompt_tokens"], prompt.len());
}

#[test]
fn models_and_tokens_are_told() {
    let setup = Setup { names: vec!["tiny", "org/other"], ..Setup::default() };
    let served = Served::with(setup);
    let list = served.get("/v1/models").fine();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    assert_eq!(served.get("/v1/models/tiny").fine(), list["data"][0]);
    assert_eq!(served.get("/v1/models/org/other").fine()["max_model_len"], CTX);
    served.get("/v1/models/absent").fails(404, Some("model"), "model_not_found");
    served.post("/tokenize", &json!({ "content": "x" })).fails(
        400,
        Some("model"),
        "missing_required_parameter",
    );
    let text = "Hello, world!\nqa";
    let ids = served.post("/tokenize", &json!({ "model": "org/other", "content": text })).fine();
    assert_eq!(ids["tokens"].as_array().map(Vec::len), Some(text.len() - 1), "qa is one token");
    let back = served.post("/detokenize", &json!({ "model": "tiny", "tokens": ids["tokens"] })).fine();
    assert_eq!(back["content"], text);
}

#[test]
fn logprobs_tell_how_likely_each_token_was() {
    let served = Served::new();
    let request = json!({ "temperature": 0, "max_tokens": 12, "ignore_eos": true });
    let reply = served.chat(&merged(request.clone(), &json!({ "logprobs": true, "top_logprobs": 3 }))).fine();
    let log = reply["choices"][0]["logprobs"]["content"].as_array().expect("a log").clone();
    assert_eq!(log.len(), 12);
    let joined_tokens: String = log.iter().map(|l| l["token"].as_str().expect("text")).collect();
    assert_eq!(joined_tokens, content(&reply));
    for logged in &log {
        let top = logged["top_logprobs"].as_array().expect("the likeliest");
        assert_eq!(top.len(), 3);
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&logged["token"], &logged["logprob"]), "greedy");
        assert!(top.windows(2).all(|w| w[0]["logprob"].as_f64() >= w[1]["logprob"].as_f64()));
        assert!(logged["logprob"].as_f64().is_some_and(|p| p <= 0.0));
        assert_eq!(logged["bytes"], json!(logged["token"].as_str().expect("text").as_bytes()));
    }
    let stream = json!({ "logprobs": true, "top_logprobs": 3, "stream": true });
    let events = served.chat(&merged(request.clone(), &stream)).events();
    let logs = events.iter().filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array()).flatten();
    assert_eq!(logs.cloned().collect::<Vec<_>>(), log);

    let reply = served.complete(&merged(request, &json!({ "logprobs": 2 }))).fine();
    let log = &reply["choices"][0]["logprobs"];
    let tokens = log["tokens"].as_array().expect("tokens");
    let mut offset = 0;
    for (i, token) in tokens.iter().enumerate() {
        assert_eq!(log["text_offset"][i], offset);
        offset += token.as_str().expect("text").len();
        let top = &log["top_logprobs"][i];
        assert_eq!(top.as_object().map(serde_json::Map::len), Some(2));
        assert_eq!(top[token.as_str().expect("text")], log["token_logprobs"][i]);
    }
}

#[test]
fn of_a_stop_string_no_token_is_told() {
    let served = Served::new();
    let whole = served.complete(&seeded(&json!({}))).fine();
    let stop = &text(&whole)[10..13];
    let at = text(&whole).find(stop).expect("it is in there");
    let reply = served.complete(&seeded(&json!({ "stop": stop, "logprobs": 0 }))).fine();
    let tokens = reply["choices"][0]["logprobs"]["tokens"].as_array().expect("tokens");
    let told: String = tokens.iter().map(|t| t.as_str().expect("text")).collect();
    assert_eq!((told.as_str(), text(&reply)), (&text(&whole)[..at], &text(&whole)[..at]));
}

#[test]
fn a_bias_forbids_and_forces() {
    let served = Served::new();
    let ids = served.post("/tokenize", &json!({ "content": "Z" })).fine();
    let z = ids["tokens"][0].to_string();
    let forced = served.complete(&seeded(&json!({ "logit_bias": { &z: 100 } }))).fine();
    assert_eq!(text(&forced), "Z".repeat(40));
    let forbidden =
        served.complete(&seeded(&json!({ "logit_bias": { &z: -100 }, "max_tokens": 200 }))).fine();
    assert!(!text(&forbidden).contains('Z'));
}

#[test]
fn the_best_of_several_are_the_likeliest() {
    let served = Served::new();
    let request = seeded(&json!({ "max_tokens": 8, "temperature": 2 }));
    let all = served.complete(&merged(request.clone(), &json!({ "n": 6, "logprobs": 0 }))).fine();
    let mean = |choice: &Value| {
        let log: Vec<f64> = choice["logprobs"]["token_logprobs"]
            .as_array()
            .expect("a log")
            .iter()
            .filter_map(Value::as_f64)
            .collect();
        log.iter().sum::<f64>() / log.len() as f64
    };
    let mut made: Vec<&Value> = all["choices"].as_array().expect("choices").iter().collect();
    made.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let best = served.complete(&merged(request, &json!({ "n": 2, "best_of": 6 }))).fine();
    let texts: Vec<&Value> =
        best["choices"].as_array().expect("choices").iter().map(|c| &c["text"]).collect();
    assert_eq!(texts, [&made[0]["text"], &made[1]["text"]]);
    assert_eq!((&best["choices"][1]["index"], &best["choices"][0]["logprobs"]), (&json!(1), &Value::Null));
    assert_eq!(best["usage"]["completion_tokens"], 48);
}

/// An answer may be empty because its end was chosen at once, which does not make it the likeliest.
#[test]
fn an_empty_answer_is_as_likely_as_its_end() {
    const END: &str = "0";
    let served = Served::new();
    let told = |choice: &Value| choice["logprobs"]["token_logprobs"][0].as_f64();
    let base = json!({ "max_tokens": 1, "logprobs": 0 });
    let sure = json!({ "temperature": 0, "ignore_eos": true, "logit_bias": { END: 100 } });
    let end = told(&served.complete(&merged(base.clone(), &sure)).fine()["choices"][0]).expect("it is told");
    let drawn = merged(base, &json!({ "seed": 3, "logit_bias": { END: 5 } }));
    let all = served.complete(&merged(drawn.clone(), &json!({ "n": 12 }))).fine();
    let made: Vec<(&str, f64)> = all["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .map(|choice| (choice["text"].as_str().expect("a text"), told(choice).unwrap_or(end)))
        .collect();
    let likeliest = made.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are some").0;
    assert!(!likeliest.is_empty() && made.iter().any(|made| made.0.is_empty()), "{made:?}");
    let best = served.complete(&merged(drawn, &json!({ "best_of": 12 }))).fine();
    assert_eq!(best["choices"][0]["text"], likeliest);
}

#[test]
fn a_beginning_that_was_read_before_is_not_read_again_and_changes_nothing() {
    let served = Served::new();
    let long = "a question that fills some blocks of sixteen positions each, ".repeat(2);
    let request = seeded(&json!({ "messages": [user(&long)], "max_tokens": 20, "receipt": true }));
    let first = served.chat(&request).fine();
    let second = served.chat(&request).fine();
    assert_eq!(content(&second), content(&first));
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count");
    assert!(cached >= 112 && cached.is_multiple_of(16), "{second}");
    assert_eq!(
        (&second["timings"]["cached_tokens"], &second["receipt"]["cached_tokens"][0]),
        (&json!(cached), &json!(cached))
    );
    assert!(served.metric("exotherm_prefix_hit_ratio{model=\"tiny\"}") > 0.3);
    assert!(served.metric("exotherm_kv_blocks{model=\"tiny\",state=\"cached\"}") > 0.0);
}

#[test]
fn embeddings_tell_texts_apart() {
    let served = Served::new();
    let ask = |body: Value| served.post("/v1/embeddings", &merged(json!({ "model": "tiny" }), &body)).fine();
    let one = ask(json!({ "input": "hello" }));
    assert_eq!((&one["object"], &one["model"]), (&json!("list"), &json!("tiny")));
    assert_eq!(one["usage"], json!({ "prompt_tokens": 5, "total_tokens": 5 }));
    let hello: Vec<f32> = serde_json::from_value(one["data"][0]["embedding"].clone()).expect("numbers");
    assert!((hello.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-4);
    // More than are handed to the engine at a time.
    let text = |i| if i == 17 { "hello".to_string() } else { format!("text {i}") };
    let many = ask(json!({ "input": (0..20).map(text).collect::<Vec<_>>(), "user": "u" }));
    assert_eq!(many["data"].as_array().map(Vec::len), Some(20));
    let again = merged(one["data"][0].clone(), &json!({ "index": 17 }));
    assert_eq!(many["data"][17], again, "alone or among others");
    assert_ne!(many["data"][0]["embedding"], many["data"][1]["embedding"]);
    let ids = served.post("/tokenize", &json!({ "content": "hello" })).fine();
    let packed = ask(json!({ "input": [ids["tokens"]], "encoding_format": "base64" }));
    let packed = packed["data"][0]["embedding"].as_str().map(str::to_string);
    let bytes: Vec<u8> = hello.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(packed, Some(STANDARD.encode(bytes)));
    let full = ask(json!({ "input": "x".repeat(CTX) }));
    assert_eq!(full["usage"]["prompt_tokens"], CTX, "nothing comes after it that would need a place");
    served.settle();
    let refused = [
        (json!({}), "input", "missing_required_parameter"),
        (json!({ "input": "" }), "input", "invalid_value"),
        (json!({ "input": [] }), "input", "invalid_value"),
        (json!({ "input": "x".repeat(CTX + 1) }), "input", "context_length_exceeded"),
        (json!({ "input": vec![1; CTX + 1] }), "input", "context_length_exceeded"),
        (json!({ "input": vec!["x"; 2049] }), "input", "invalid_value"),
        (json!({ "input": "x", "dimensions": 3 }), "dimensions", "unsupported_parameter"),
        (json!({ "input": "x", "encoding_format": "int8" }), "encoding_format", "invalid_value"),
    ];
    for (body, param, code) in refused {
        served.post("/v1/embeddings", &body).fails(400, Some(param), code);
    }
}
