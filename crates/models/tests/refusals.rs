//! What a model's files can have wrong ends in an error that names it, never in a guess.

use std::path::{Path, PathBuf};

use exotherm_models::{LoadOptions, Model, ModelError, load};
use exotherm_tensor::DType;
use exotherm_weights::Checkpoint;
use serde_json::{Value, json};

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

fn open(path: &Path) -> Result<Model, ModelError> {
    load(&mut Checkpoint::open(path)?, &LoadOptions::default())
}

/// Why a copy of a case is refused after `edit` of its config.json.
fn refusal_of_config(case: &str, edit: impl Fn(&mut Value)) -> String {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = std::fs::read_to_string(golden(case).join("config.json")).expect("config.json");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    edit(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("a small file");
    std::fs::copy(golden(case).join("model.safetensors"), dir.path().join("model.safetensors"))
        .expect("a copy");
    match open(dir.path()) {
        Ok(_) => panic!("{case} was let pass with {config}"),
        Err(error) => error.to_string(),
    }
}

/// The case's safetensors with every `from` in the header (names, shapes) replaced by a `to` of the same length.
fn with_header_edited(case: &str, from: &str, to: &str) -> tempfile::TempDir {
    assert_eq!(from.len(), to.len());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut bytes = std::fs::read(golden(case).join("model.safetensors")).expect("the model");
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header = String::from_utf8(bytes[8..8 + header_len].to_vec()).expect("UTF-8");
    assert!(header.contains(from), "{from} is not in the header");
    bytes[8..8 + header_len].copy_from_slice(header.replace(from, to).as_bytes());
    std::fs::write(dir.path().join("model.safetensors"), bytes).expect("a small file");
    let config = golden(case).join("config.json");
    if config.exists() {
        std::fs::copy(config, dir.path().join("config.json")).expect("a copy");
    }
    dir
}

#[track_caller]
fn assert_names(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

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
        assert_names(&refusal_of_config(case, edit), words);
    }
}

#[test]
fn a_missing_key_is_named_with_its_place() {
    let error = refusal_of_config("qwen2", |c| {
        c.as_object_mut().expect("an object").remove("num_attention_heads");
    });
    assert_names(&error, &["num_attention_heads", "config.json"]);
}

#[test]
fn a_tensor_under_another_name_is_missing() {
    let dir = with_header_edited("qwen3", "layers.1.self_attn.q_norm", "layers.1.self_attn.q_morn");
    assert_names(
        &open(dir.path()).err().expect("refused").to_string(),
        &["model.layers.1.self_attn.q_norm.weight"],
    );
}

#[test]
fn a_leftover_tensor_is_named() {
    // Without its flag the biases of llama-linear-tied are read by nothing.
    let error = refusal_of_config("llama-linear-tied", |c| c["mlp_bias"] = json!(false));
    assert_names(&error, &["mlp", "bias"]);
    // Fewer layers than the file has.
    let error = refusal_of_config("qwen2", |c| c["num_hidden_layers"] = json!(1));
    assert_names(&error, &["layers.1."]);
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let error = refusal_of_config("qwen2", |c| c["intermediate_size"] = json!(7));
    assert_names(&error, &["mlp.gate_proj.weight", "7"]);
}

#[test]
fn rwkv_shapes_must_fit_together() {
    let dir = with_header_edited("rwkv7", "blocks.1.att.k_a", "blocks.1.att.k_b");
    assert_names(&open(dir.path()).err().expect("refused").to_string(), &["blocks.1.att.k_a"]);
    let dir = with_header_edited("rwkv7", "blocks.2.att.r_k", "blocks.9.att.r_k");
    assert_names(&open(dir.path()).err().expect("refused").to_string(), &["blocks.2."]);
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
