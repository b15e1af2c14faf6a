//! Configurations as real checkpoints have them: what is silent, spelled otherwise, or beside the point.

mod common;

use common::{Edited, assert_names, distance, expected, golden, open};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_weights::{Checkpoint, GgufWriter, NewValue};
use serde_json::{Value, json};

const CLOSE: f32 = 1e-4;

#[test]
fn a_config_beside_a_gguf_file_changes_nothing() {
    let misleading: &[(&str, Value)] = &[
        ("gemma3-six", json!({ "layer_types": ["full_attention"], "rope_theta": 3 })),
        ("qwen2", json!({ "rope_parameters": { "rope_theta": 3 }, "use_sliding_window": true })),
        ("qwen3", json!({ "attention_bias": true, "tie_word_embeddings": true })),
        ("gpt2", json!({ "scale_attn_weights": false, "activation_function": "swish" })),
    ];
    for (case, config) in misleading {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::copy(golden(case).join("model.gguf"), dir.path().join("model.gguf")).expect("a copy");
        std::fs::write(dir.path().join("config.json"), config.to_string()).expect("a small file");
        let far = distance(dir.path(), &expected(&golden(case)), &ReferenceBackend);
        assert!(far < CLOSE, "{case}: {far}");
    }
}

/// A copy of a golden GGUF file with other metadata under its architecture's prefix.
fn gguf_with(case: &str, leave_out: &[&str], set: &[(&str, NewValue)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let checkpoint = Checkpoint::open(&golden(case).join("model.gguf")).expect("opens");
    let mut from = Checkpoint::open(&golden(case).join("model.gguf")).expect("opens");
    let mut writer = GgufWriter::new();
    let left_out = |key: &str| leave_out.iter().any(|end| key.ends_with(end));
    writer.copy_metadata(checkpoint.metadata(), left_out);
    for (key, value) in set {
        writer.set(*key, *value);
    }
    let names: Vec<String> = checkpoint.names().map(str::to_string).collect();
    for name in &names {
        let (dtype, shape) = checkpoint.info(name).expect("a weight");
        writer.tensor(name, dtype, shape);
    }
    let mut sink = writer.create(&dir.path().join("model.gguf"), false).expect("a new file");
    for name in &names {
        let shape = checkpoint.info(name).expect("a weight").1.to_vec();
        sink.write(from.take(name, &shape).expect("a weight").bytes()).expect("room on the disk");
    }
    sink.finish().expect("room on the disk");
    dir
}

#[test]
fn linear_scaling_may_be_given_without_its_type_or_under_its_old_name() {
    let case = "llama-linear-tied";
    let want = expected(&golden(case));
    let keys = ["rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"];
    let factor = |key| gguf_with(case, &keys, &[(key, NewValue::F32(4.0))]);
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        let far = distance(factor(key).path(), &want, &ReferenceBackend);
        assert!(far < CLOSE, "{key}: {far}");
    }
    let far = distance(gguf_with(case, &keys, &[]).path(), &want, &ReferenceBackend);
    assert!(far > 0.01, "without a scaling the logits are others: {far}");
}

#[test]
fn a_head_of_its_own_is_used_even_where_the_config_says_tied() {
    let far = Edited::of("llama-rope3").set("tie_word_embeddings", json!(true)).distance_from("llama-rope3");
    assert!(far < CLOSE, "{far}");
    // A copy of the embedding beside tied embeddings is left alone.
    let mut copied = Edited::of("llama-linear-tied");
    let mut head =
        copied.tensors.iter().find(|t| t.0.contains("embed_tokens")).expect("the embedding").clone();
    head.0 = "lm_head.weight".into();
    copied.tensors.push(head);
    assert!(copied.distance_from("llama-linear-tied") < CLOSE);
}

#[test]
fn rope_parameters_may_leave_the_base_outside() {
    let mut edited = Edited::of("llama-linear-tied");
    let theta = edited.config["rope_parameters"]["rope_theta"].clone();
    edited.config["rope_parameters"].as_object_mut().expect("an object").remove("rope_theta");
    edited.config["rope_theta"] = theta;
    let far = edited.distance_from("llama-linear-tied");
    assert!(far < CLOSE, "{far}");
}

#[test]
fn null_is_the_same_as_absent() {
    let mut edited = Edited::of("qwen3moe-raw");
    let config = edited.config.as_object_mut().expect("an object");
    let key = ["num_experts", "num_local_experts"].into_iter().find(|k| config.contains_key(*k));
    let count = config.remove(key.expect("a count of experts")).expect("just found");
    let edited = edited.set("num_experts", Value::Null).set("num_local_experts", count);
    assert!(edited.set("text_config", Value::Null).distance_from("qwen3moe-raw") < CLOSE);
}

#[test]
fn gemma_configs_may_be_silent_about_what_is_usual() {
    let silent = ["max_position_embeddings", "rms_norm_eps", "attention_bias", "final_logit_softcapping"];
    let dir = Edited::of("gemma3").without(&silent).write();
    assert_eq!(open(dir.path()).expect("loads").info.context, 131_072);
    // Eight heads of 256 are assumed, which these weights are not.
    let heads = ["num_attention_heads", "num_key_value_heads", "head_dim"];
    assert_names(&Edited::of("gemma3").without(&heads).refusal(), &["q_proj", "2048"]);
}

#[test]
fn what_would_change_the_meaning_is_refused() {
    let kinds = |n: usize, kind: &str| Value::from(vec![kind; n]);
    let cases: &[(&str, &str, Value, &[&str])] = &[
        ("gemma3", "use_bidirectional_attention", json!(true), &["use_bidirectional_attention"]),
        ("gemma3", "attn_logit_softcapping", json!(50.0), &["attn_logit_softcapping"]),
        ("gemma3", "final_logit_softcapping", json!(0.0), &["final_logit_softcapping"]),
        ("gemma3", "layer_types", kinds(3, "full_attention"), &["layer_types", "3", "4 layers"]),
        ("gemma3", "layer_types", kinds(4, "chunked_attention"), &["layer_types", "chunked_attention"]),
        ("gemma3", "layer_types", json!("full"), &["layer_types"]),
        ("gemma3", "sliding_window", json!(0), &["sliding_window"]),
        ("llama-rope3", "tie_word_embeddings", json!("true"), &["tie_word_embeddings"]),
        ("llama-rope3", "rope_parameters", json!({ "rope_theta": "500" }), &["rope_theta", "500"]),
        ("llama-rope3", "rope_parameters", json!({ "rope_type": ["yarn"] }), &["rope_type", "yarn"]),
        ("llama-rope3", "rope_parameters", json!("yarn"), &["rope", "yarn"]),
        ("llama-rope3", "head_dim", json!(0), &["head_dim", "0"]),
        ("qwen3moe", "mlp_only_layers", json!("0"), &["mlp_only_layers"]),
        ("qwen3moe", "decoder_sparse_step", json!(0), &["decoder_sparse_step"]),
    ];
    for (case, key, value, words) in cases {
        assert_names(&Edited::of(case).set(key, value.clone()).refusal(), words);
    }
}
