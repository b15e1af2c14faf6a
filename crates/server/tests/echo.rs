//! Completions that tell their prompt, and how likely it was.

mod common;

use common::{CTX, Reply, Served, Setup, joined, merged};
use serde_json::{Value, json};

const TOLD: [&str; 4] = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];

/// What is asked for here unless something else is said: a text with a token of two letters in it.
fn echo(served: &Served, extra: &Value) -> Reply {
    let base = json!({ "prompt": "say qa", "echo": true, "logprobs": 2, "max_tokens": 5, "seed": 3, "ignore_eos": true });
    served.complete(&merged(base, extra))
}

/// One of the lists of a choice's log-probabilities.
fn list<'a>(choice: &'a Value, name: &str) -> &'a [Value] {
    choice["logprobs"][name].as_array().unwrap_or_else(|| panic!("no {name} in {choice}"))
}

fn lengths(choice: &Value) -> [usize; 4] {
    TOLD.map(|name| list(choice, name).len())
}

/// Who asks for one token after the prompt drops the last entry, so there must be one, also where the answer ends at once.
#[test]
fn what_ends_an_answer_behind_a_prompt_is_told_like_a_token() {
    let served = Served::new();
    let ends = json!({ "max_tokens": 1, "ignore_eos": false, "temperature": 0, "logit_bias": { "0": 100 } });
    let reply = echo(&served, &ends).fine();
    let choice = &reply["choices"][0];
    assert_eq!((choice["text"].as_str(), choice["finish_reason"].as_str()), (Some("say qa"), Some("stop")));
    assert_eq!((lengths(choice), &reply["usage"]["completion_tokens"]), ([6; 4], &json!(0)));
    let (told, offset) = (list(choice, "token_logprobs")[5].as_f64(), &list(choice, "text_offset")[5]);
    assert!(told.is_some_and(|told| told < 0.0) && *offset == 6, "{choice}");
    // The same token where it is an answer's own.
    let stays = json!({ "max_tokens": 1, "temperature": 0, "logit_bias": { "0": 100 } });
    let stays = echo(&served, &stays).fine();
    assert_eq!(list(&stays["choices"][0], "token_logprobs")[5].as_f64(), told);
    assert_eq!(stays["usage"]["completion_tokens"], 1);
}

#[test]
fn an_echo_is_told_with_the_log_probabilities_of_its_tokens() {
    let served = Served::new();
    let reply = echo(&served, &json!({})).fine();
    let choice = &reply["choices"][0];
    // Five characters and a pair, then the answer.
    assert_eq!((lengths(choice), choice["finish_reason"].as_str()), ([10; 4], Some("length")));
    assert_eq!(reply["usage"]["prompt_tokens"], 5);
    assert_eq!(reply["usage"]["completion_tokens"], 5);
    let text = choice["text"].as_str().expect("a text");
    let tokens: Vec<&str> = list(choice, "tokens").iter().map(|t| t.as_str().expect("a text")).collect();
    assert_eq!((&tokens[..5], tokens.concat()), (&["s", "a", "y", " ", "qa"][..], text.to_string()));
    let mut offset = 0;
    for (i, token) in tokens.iter().enumerate() {
        assert_eq!(list(choice, "text_offset")[i], offset);
        offset += token.len();
        let (own, top) = (&list(choice, "token_logprobs")[i], &list(choice, "top_logprobs")[i]);
        if i == 0 {
            assert!(own.is_null() && top.is_null(), "nothing is known of the first");
            continue;
        }
        let own = own.as_f64().expect("a number");
        let top = top.as_object().expect("the likeliest");
        // The two likeliest, and the token itself where it is neither of them.
        assert!(own < 0.0 && top.get(*token).is_some_and(|told| told == own), "{own} {top:?}");
        let likelier = top.values().filter_map(Value::as_f64).filter(|&other| other > own).count();
        assert_eq!(top.len(), if likelier < 2 { 2 } else { 3 }, "{own} {top:?}");
    }
    // What is told of a prompt's token is what is told where it is chosen.
    let bias = json!({ "1": 0 });
    let all = json!({ "prompt": text, "max_tokens": 0, "logit_bias": bias, "temperature": 0.5 });
    let again = echo(&served, &all).fine();
    for name in TOLD {
        assert_eq!(list(&again["choices"][0], name), list(choice, name), "{name}");
    }
    served.settle();
}

#[test]
fn nothing_is_generated_where_nothing_is_wanted() {
    let served = Served::new();
    let reply = echo(&served, &json!({ "max_tokens": 0, "n": 2 })).fine();
    for choice in reply["choices"].as_array().expect("choices") {
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("say qa"), &json!("length")));
        assert_eq!(lengths(choice), [5; 4]);
        assert_eq!(choice["logprobs"], reply["choices"][0]["logprobs"]);
    }
    let usage = |reply: &Value| {
        ["prompt_tokens", "completion_tokens", "total_tokens"].map(|name| reply["usage"][name].as_u64())
    };
    assert_eq!(usage(&reply), [Some(5), Some(0), Some(5)]);
    assert_eq!(
        (&reply["timings"]["generated_tokens"], &reply["timings"]["decode_tok_s"]),
        (&json!(0), &Value::Null)
    );
    let plain = echo(&served, &json!({ "max_tokens": 0, "logprobs": null })).fine();
    assert_eq!(
        (&plain["choices"][0]["text"], &plain["choices"][0]["logprobs"]),
        (&json!("say qa"), &Value::Null)
    );
    let silent = echo(&served, &json!({ "max_tokens": 0, "echo": false })).fine();
    assert_eq!((&silent["choices"][0]["text"], usage(&silent)), (&json!(""), usage(&reply)));
    assert_eq!(lengths(&silent["choices"][0]), [0; 4]);
    // A prompt that fills the context, and one of a token of which nothing is known.
    let full = echo(&served, &json!({ "max_tokens": 0, "prompt": "x".repeat(CTX) })).fine();
    assert_eq!(lengths(&full["choices"][0]), [CTX; 4]);
    let one = echo(&served, &json!({ "max_tokens": 0, "prompt": [1], "logprobs": 0 })).fine();
    assert_eq!(
        one["choices"][0]["logprobs"],
        json!({ "tokens": [" "], "token_logprobs": [null], "top_logprobs": [null], "text_offset": [0] })
    );
    assert_eq!(served.metric("exotherm_tokens_total{model=\"tiny\",kind=\"generated\"}"), 0.0);
    served.settle();
}

#[test]
fn a_stream_begins_with_the_echo_and_what_is_told_of_it() {
    let served = Served::new();
    for ask in [json!({ "n": 3 }), json!({ "max_tokens": 0 }), json!({ "prompt": [[84, 66], [1]] })] {
        let whole = echo(&served, &ask).fine();
        let stream = json!({ "stream": true, "stream_options": { "include_usage": true } });
        let events = echo(&served, &merged(ask, &stream)).events();
        assert_eq!(events.last().expect("the usage")["usage"], whole["usage"]);
        for (i, choice) in whole["choices"].as_array().expect("choices").iter().enumerate() {
            assert_eq!(joined(&events, i), choice["text"].as_str().expect("a text"));
            let chunks = || events.iter().filter_map(|e| e["choices"].get(0)).filter(|c| c["index"] == i);
            let first = chunks().next().expect("a chunk");
            let (echo, logged) = (first["text"].as_str().expect("a text"), list(first, "token_logprobs"));
            assert!(logged.len() == echo.len() - usize::from(echo == "say qa") && logged[0].is_null());
            for name in TOLD {
                let told = chunks().filter_map(|c| c["logprobs"][name].as_array()).flatten();
                assert!(told.eq(list(choice, name)), "{name}");
            }
            assert_eq!(chunks().next_back().expect("the end")["finish_reason"], "length");
        }
    }
    served.settle();
}

/// However it is asked, among whatever others: the same numbers.
#[test]
fn an_echo_does_not_depend_on_who_else_is_there() {
    let served = Served::with(Setup { max_seqs: 4, queue: 40, ..Setup::default() });
    let prompts: Vec<String> = (0..6).map(|i| format!("{}{i}", "a common beginning ".repeat(3))).collect();
    let ask = |i: usize| {
        let reply = echo(&served, &json!({ "prompt": prompts[i], "max_tokens": 2 })).fine();
        reply["choices"][0].clone()
    };
    let alone: Vec<Value> = (0..6).map(ask).collect();
    let list = echo(&served, &json!({ "prompt": prompts, "max_tokens": 2, "n": 2 })).fine();
    for (i, expected) in alone.iter().enumerate() {
        assert_eq!(list["choices"][2 * i]["logprobs"], expected["logprobs"]);
        let other = &list["choices"][2 * i + 1]["logprobs"];
        for name in TOLD {
            let prompt = prompts[i].len();
            assert_eq!(
                other[name].as_array().map(|l| &l[..prompt]),
                expected["logprobs"][name].as_array().map(|l| &l[..prompt])
            );
        }
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..12).map(|i| scope.spawn(move || (i % 6, ask(i % 6)))).collect();
        for (i, choice) in threads.into_iter().map(|t| t.join().expect("an answer")) {
            assert_eq!(choice, alone[i]);
        }
    });
    let best = echo(&served, &json!({ "best_of": 4, "temperature": 1.5 })).fine();
    assert_eq!(lengths(&best["choices"][0]), [10; 4]);
    served.settle();
}

/// Control tokens are written out in the echo of tokens.
#[test]
fn offsets_count_control_tokens() {
    let served = Served::new();
    let choice = &echo(&served, &json!({ "prompt": [66, 0, 67], "max_tokens": 1 })).fine()["choices"][0];
    assert_eq!(list(choice, "tokens")[..3], [json!("a"), json!("<|endoftext|>"), json!("b")]);
    assert_eq!(list(choice, "text_offset"), [json!(0), json!(1), json!(14), json!(15)]);
    assert!(choice["text"].as_str().is_some_and(|text| text.starts_with("a<|endoftext|>b")));
}
