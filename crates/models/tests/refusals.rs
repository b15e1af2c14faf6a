//! What a model's files can have wrong ends in an error that names it, never in a guess.

mod common;

use common::{Edited, assert_names, golden, open};
use exotherm_models::{LoadOptions, load};
use exotherm_tensor::DType;
use exotherm_weights::Checkpoint;
use serde_json::{Value, json};

#[test]
fn bad_configurations_name_the_key() {
    type Edit = fn(&mut Value);
    let cases: &[(&str, Edit, &[&str])] = &[
        ("llama-rope3", |c| c["model_type"] = json!("mamba"), &["mamba", "llama", "rwkv7"]),
        ("llama-rope3", |c| c["model_type"] = Value::Null, &["model_type"]),
        ("llama-rope3", |c| c["hidden_act"] = json!("relu"), &["hidden_act", "relu", "silu"]),
        ("llama-rope3", |c| c["num_hidden_layers"] = json!(0), &["num_hidden_layers", "0"]),
        ("llama-rope3", |c| c["num_hidden_layers"] = json!(1 << 20), &["layers", "1048576"]),
        ("llama-rope3", |c| c["num_hidden_layers"] = json!(-3), &["num_hidden_layers", "-3"]),
        ("llama-rope3", |c| c["num_hidden_layers"] = json!("two"), &["num_hidden_layers", "two"]),
        ("llama-rope3", |c| c["hidden_size"] = json!(u64::MAX), &["hidden_size"]),
        ("llama-rope3", |c| c["num_key_value_heads"] = json!(4), &["KV heads", "4"]),
        ("llama-rope3", |c| c["head_dim"] = json!(11), &["rotated", "11"]),
        ("llama-rope3", |c| c["rms_norm_eps"] = json!(0.0), &["rms_norm_eps"]),
        ("llama-rope3", |c| c["rope_parameters"]["rope_type"] = json!("yarn"), &["yarn", "linear", "llama3"]),
        ("llama-rope3", |c| c["rope_parameters"]["factor"] = json!(0), &["factor"]),
        ("llama-rope3", |c| c["rope_parameters"]["rope_theta"] = json!(-1.0), &["rope_theta"]),
        ("qwen3moe", |c| c["num_experts_per_tok"] = json!(99), &["experts", "99"]),
        ("gemma3", |c| c["hidden_activation"] = json!("silu"), &["hidden_activation", "gelu_pytorch_tanh"]),
        ("gpt2", |c| c["activation_function"] = json!("swish"), &["activation_function", "swish"]),
        ("gpt2", |c| c["n_head"] = json!(5), &["heads", "5"]),
    ];
    for (case, edit, words) in cases {
        let mut edited = Edited::of(case);
        edit(&mut edited.config);
        assert_names(&edited.refusal(), words);
    }
}

#[test]
fn a_missing_key_is_named_with_its_place() {
    let error = Edited::of("qwen2").without(&["num_attention_heads"]).refusal();
    assert_names(&error, &["num_attention_heads", "config.json"]);
}

#[test]
fn a_tensor_under_another_name_is_missing() {
    let edited = Edited::of("qwen3").renamed("layers.1.self_attn.q_norm", "layers.1.self_attn.q_normal");
    assert_names(&edited.refusal(), &["model.layers.1.self_attn.q_norm.weight"]);
}

#[test]
fn a_leftover_tensor_is_named() {
    // Without its flag the biases of llama-linear-tied are read by nothing.
    let error = Edited::of("llama-linear-tied").set("mlp_bias", json!(false)).refusal();
    assert_names(&error, &["mlp", "bias"]);
    // Fewer layers than the file has.
    let edited = Edited::of("qwen2").set("num_hidden_layers", json!(1));
    let error = edited.without(&["layer_types"]).refusal();
    assert_names(&error, &["layers.1."]);
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let error = Edited::of("qwen2").set("intermediate_size", json!(7)).refusal();
    assert_names(&error, &["mlp.gate_proj.weight", "7"]);
}

#[test]
fn rwkv_shapes_must_fit_together() {
    let edited = Edited::of("rwkv7").renamed("blocks.1.att.k_a", "blocks.1.att.k_b");
    assert_names(&edited.refusal(), &["blocks.1.att.k_a"]);
    let edited = Edited::of("rwkv7").renamed("blocks.2.att.r_k", "blocks.9.att.r_k");
    assert_names(&edited.refusal(), &["blocks.2."]);
}

#[test]
fn a_scalar_in_place_of_a_matrix_is_a_wrong_shape() {
    let cases = [
        ("llama-rope3", "model.embed_tokens.weight"),
        ("llama-rope3", "model.layers.0.mlp.up_proj.weight"),
        ("gpt2", "transformer.wte.weight"),
        ("rwkv7", "emb.weight"),
        ("rwkv7", "blocks.0.ffn.key.weight"),
        ("rwkv7", "blocks.0.att.w2"),
        ("rwkv7", "blocks.0.att.r_k"),
    ];
    for (case, name) in cases {
        let error = Edited::of(case).scalar(name).refusal();
        assert!(error.contains(name) || error.contains("head size"), "{error}");
    }
}

#[test]
fn quantizing_at_load_changes_matrices_alone() {
    let path = golden("llama-rope3");
    let plain = open(&path).expect("loads");
    for wanted in [DType::Q8_0, DType::Q4_0, DType::Q5_1, DType::F16] {
        let options = LoadOptions { quantize: Some(wanted), ..LoadOptions::default() };
        let model = load(&mut Checkpoint::open(&path).expect("opens"), &options).expect("loads");
        // Rows of 36 and 52 hold no whole blocks: they fall back to F16; rows of 60 too.
        for (plain, now) in plain.program.matrices().iter().zip(model.program.matrices()) {
            assert!(now.segments.iter().all(|s| s.dtype() == DType::F16), "{}", now.name);
            assert_eq!((plain.n_out, plain.n_in), (now.n_out, now.n_in));
            let (mut a, mut b) = (vec![0.0; plain.n_in], vec![0.0; plain.n_in]);
            for row in 0..plain.n_out {
                plain.decode_row(row, &mut a);
                now.decode_row(row, &mut b);
                assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= a.abs() / 1024.0 + 1e-6));
            }
        }
    }
}
