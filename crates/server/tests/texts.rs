//! Texts as they were written: spaces at their beginnings, and prompts that are told again.

mod common;

use common::{BLUE, Served, Setup, joined, merged, user};
use serde_json::{Value, json};

fn spaced() -> Served {
    Served::with(Setup { spm: true, ..Setup::default() })
}

/// Says ` blue` and nothing else.
fn blue(extra: Value) -> Value {
    let always = json!({ "logit_bias": { BLUE.to_string(): 100 }, "temperature": 0, "max_tokens": 2 });
    merged(always, &extra)
}

#[test]
fn a_completion_keeps_the_space_it_begins_with() {
    let served = spaced();
    let choice = |extra: Value| served.complete(&blue(extra)).fine()["choices"][0].clone();
    assert_eq!(choice(json!({ "prompt": "sky" }))["text"], " blue blue");
    assert_eq!(choice(json!({ "prompt": "sky", "echo": true }))["text"], "sky blue blue");
    let streamed = served.complete(&blue(json!({ "prompt": "sky", "stream": true }))).events();
    assert_eq!(joined(&streamed, 0), " blue blue");
    let stopped = choice(json!({ "prompt": "sky", "stop": " blue" }));
    assert_eq!((&stopped["text"], &stopped["finish_reason"]), (&json!(""), &json!("stop")));
    let told = choice(json!({ "prompt": "sky", "logprobs": 0 }));
    assert_eq!(told["logprobs"]["text_offset"], json!([0, 5]));
    assert_eq!(told["logprobs"]["tokens"], json!([" blue", " blue"]));
    // Of each prompt by itself; where there was no text yet, it begins one.
    let both = served.complete(&blue(json!({ "prompt": [[1], [1, 4]], "n": 2 }))).fine();
    let texts: Vec<&Value> = (0..4).map(|i| &both["choices"][i]["text"]).collect();
    assert_eq!(texts, ["blue blue", "blue blue", " blue blue", " blue blue"]);
}

#[test]
fn a_chats_answer_begins_a_text() {
    let served = spaced();
    let chat = |extra: Value| served.chat(&blue(merged(json!({ "messages": [user("sky")] }), &extra)));
    assert_eq!(chat(json!({})).fine()["choices"][0]["message"]["content"], "blue blue");
    let stopped = chat(json!({ "stop": " blue" })).fine();
    assert_eq!(stopped["choices"][0]["message"]["content"], "blue");
}

#[test]
fn a_prompt_is_told_alike_as_text_and_as_tokens() {
    let served = spaced();
    let echoed = |prompt: Value| {
        let reply = served.complete(&blue(json!({ "prompt": prompt, "echo": true }))).fine();
        reply["choices"][0]["text"].as_str().expect("a text").to_string()
    };
    for text in ["sky", "sky blue", "a</s>", "<s>a"] {
        let added = served.post("/tokenize", &json!({ "content": text, "add_special": true })).fine();
        assert_eq!(added["tokens"][0], 1, "BOS is put before it");
        assert_eq!(echoed(json!(text)), format!("{text} blue blue"));
        assert_eq!(echoed(added["tokens"].clone()), format!("{text} blue blue"));
    }
}
