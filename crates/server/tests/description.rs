//! What the server says of itself at `/openapi.json` is what it does.

mod common;

use std::collections::BTreeSet;

use common::{Served, merged, user};
use serde_json::{Value, json};

/// The part of a document that a schema stands for.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(path) => document.pointer(path.trim_start_matches('#')).expect("it is there"),
        None => schema,
    }
}

fn properties(document: &Value, schema: &Value) -> BTreeSet<String> {
    let schema = resolved(document, schema);
    let own = schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone());
    let parts = schema["allOf"].as_array().into_iter().flatten();
    own.chain(parts.flat_map(|part| properties(document, part))).collect()
}

#[test]
fn every_path_and_parameter_that_is_described_is_there() {
    let served = Served::new();
    let document = served.get("/openapi.json").fine();
    let least = |path: &str| match path {
        "/v1/chat/completions" => json!({ "messages": [user("hi")], "max_tokens": 1 }),
        "/v1/completions" => json!({ "prompt": "hi", "max_tokens": 1 }),
        "/v1/embeddings" => json!({ "input": "hi" }),
        "/tokenize" => json!({ "content": "hi" }),
        "/detokenize" => json!({ "tokens": [1] }),
        other => panic!("{other} is described, but not here"),
    };
    let paths = document["paths"].as_object().expect("paths");
    assert_eq!(paths.len(), 11);
    for (path, methods) in paths {
        if methods.get("get").is_some() {
            assert_eq!(served.get(&path.replace("{id}", "tiny")).status, 200, "{path}");
            continue;
        }
        let schema = &methods["post"]["requestBody"]["content"]["application/json"]["schema"];
        let (body, known) = (least(path), properties(&document, schema));
        assert!(known.len() >= 2, "{path}: {known:?}");
        assert_eq!(served.post(path, &body).status, 200, "{path}");
        for name in known.iter().filter(|name| body.get(name.as_str()).is_none()) {
            let reply = served.post(path, &merged(body.clone(), &json!({ name.as_str(): null })));
            assert_eq!(reply.status, 200, "{path} {name}: {}", reply.text());
        }
        let required = resolved(&document, schema)["required"].as_array().expect("something is needed");
        for name in required.iter().filter_map(Value::as_str) {
            let mut without = body.clone();
            without.as_object_mut().and_then(|body| body.remove(name)).expect("it is in there");
            served.post(path, &without).fails(400, Some(name), "missing_required_parameter");
        }
    }
}

#[test]
fn values_at_the_ends_of_their_ranges_are_taken_and_those_past_them_are_not() {
    let served = Served::new();
    let document = served.get("/openapi.json").fine();
    let ranges =
        document["components"]["schemas"]["Generation"]["properties"].as_object().expect("parameters");
    let mut tried = 0;
    for (name, schema) in ranges.iter().filter(|(name, _)| *name != "max_tokens") {
        for (end, past) in [("minimum", -1.0), ("maximum", 1.0)] {
            let Some(at) = schema.get(end) else { continue };
            let ask = |value: Value| served.chat(&json!({ "max_tokens": 1, name.as_str(): value })).status;
            assert_eq!(ask(at.clone()), 200, "{name} {at}");
            // A step of its own size, so that large numbers move as well.
            let step = past * at.as_f64().map_or(1.0, |at| at.abs().max(1.0));
            assert_eq!(ask(json!(at.as_f64().expect("a number") + step)), 400, "{name} past {at}");
            tried += 1;
        }
    }
    assert!(tried >= 18, "{tried}");
}

#[test]
fn a_list_of_prompts_has_the_length_that_is_described() {
    let served = Served::new();
    let document = served.get("/openapi.json").fine();
    let most = &document["components"]["schemas"]["CompletionRequest"]["properties"]["prompt"]["oneOf"][2]["maxItems"];
    let most = most.as_u64().expect("a number") as usize;
    let ask = |count: usize| served.complete(&json!({ "prompt": vec!["a"; count], "max_tokens": 1 }));
    assert_eq!(ask(most).fine()["choices"].as_array().map(Vec::len), Some(most));
    ask(most + 1).fails(400, Some("prompt"), "invalid_value");
}
