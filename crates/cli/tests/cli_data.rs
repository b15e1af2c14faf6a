//! The commands that print data about a model: logits, tokenize, perplexity, selfcheck, bench, inspect, quantize.

mod common;

use std::fs;
use std::io::Write as _;

use common::{Ran, User, expected, golden, list, numbers};
use exotherm_weights::{GgufWriter, NewValue};
use serde_json::Value;

/// The largest difference of a logit that is let pass, as for the golden models themselves.
const TOLERANCE: f64 = 2e-3;

fn path(case: &str) -> String {
    golden(case).display().to_string()
}

#[track_caller]
fn assert_close(have: &Value, want: &Value) {
    let (have, want) = (have.as_array().expect("rows"), want.as_array().expect("rows"));
    assert_eq!(have.len(), want.len());
    for (have, want) in have.iter().zip(want) {
        let (have, want) = (numbers(have), numbers(want));
        assert_eq!(have.len(), want.len());
        for (have, want) in have.iter().zip(&want) {
            assert!((have - want).abs() <= TOLERANCE, "{have} is not {want}");
        }
    }
}

#[test]
fn logits_of_folders_and_files_are_those_of_the_golden_models() {
    let user = User::new();
    let cases = [
        ("llama-rope3", true),
        ("qwen2", true),
        ("qwen3moe-fused", true),
        ("gpt2", true),
        ("gemma3-two", true),
        ("rwkv7", true),
        ("llama-sharded", false),
    ];
    for (case, has_gguf) in cases {
        let want = expected(case);
        let (tokens, positions) = (list(&want["tokens"]), list(&want["positions"]));
        let gguf = golden(case).join("model.gguf").display().to_string();
        let folder = match case.starts_with("rwkv7") {
            // Its folder holds both kinds of files and no config.json.
            true => golden(case).join("model.safetensors").display().to_string(),
            false => path(case),
        };
        for model in [folder].into_iter().chain(has_gguf.then_some(gguf)) {
            for options in [&["--chunk", "7"][..], &["--backend", "reference"], &["--threads", "2"]] {
                let base = ["logits", &model, "--tokens", &tokens, "--positions", &positions, "--json"];
                let have = user.run(&[&base, options].concat()).json();
                assert_eq!(have["positions"], want["positions"], "{model}");
                assert_close(&have["logits"], &want["logits"]);
            }
        }
    }
}

#[test]
fn logits_are_exact_and_in_the_order_asked_for() {
    let user = User::new();
    let model = path("qwen2");
    let logits = |options: &[&str]| {
        user.run(&[&["logits", &model, "--tokens", "5,6,7,8", "--json"], options].concat()).json()
    };
    let all = logits(&["--positions", "0,1,2,3"]);
    assert_eq!(all["logits"], logits(&["--positions", "0,1,2,3", "--chunk", "1"])["logits"], "bit for bit");
    let last = logits(&[]);
    assert_eq!(last["positions"], serde_json::json!([3]));
    assert_eq!(last["logits"][0], all["logits"][3]);
    let turned = logits(&["--positions", "2,0,2"]);
    assert_eq!(turned["positions"], serde_json::json!([2, 0, 2]));
    assert_eq!(turned["logits"][0], all["logits"][2]);
    assert_eq!(turned["logits"][1], all["logits"][0]);
    assert_eq!(turned["logits"][2], all["logits"][2]);
    // Digits that read back as the same f32, and no more of them than that.
    let raw = user.run(&["logits", &model, "--tokens", "5", "--json"]).fine().stdout;
    let row = raw.split("[[").nth(1).and_then(|r| r.split("]]").next()).expect("a row");
    for digits in row.split(',') {
        assert_eq!(format!("{}", digits.parse::<f32>().expect("a number")), *digits);
    }
    assert_ne!(all["logits"], logits(&["--positions", "0,1,2,3", "--kv-type", "f16"])["logits"]);
    assert_ne!(all["logits"], logits(&["--positions", "0,1,2,3", "--quantize", "bf16"])["logits"]);
    let text = user.run(&["logits", &model, "--tokens", "5,6"]).fine().stdout;
    assert!(text.starts_with("position 1: "), "{text}");
}

#[test]
fn logits_refuse_what_cannot_be_done() {
    let user = User::new();
    let model = path("gpt2");
    let run = |options: &[&str]| user.run(&[&["logits", &model], options].concat());
    run(&[]).fails(2, &["--tokens"]);
    run(&["--tokens", ""]).fails(2, &["--tokens"]);
    run(&["--tokens", "1,x"]).fails(2, &["\"x\"", "1,2,3"]);
    run(&["--tokens", "1,-2"]).fails(2, &["-2"]);
    run(&["--tokens", "1,2", "--positions", "2"]).fails(1, &["position 2", "2 tokens"]);
    run(&["--tokens", "1,99999"]).fails(1, &["99999", "109"]);
    run(&["--tokens", "1", "--chunk", "0"]).fails(2, &["at least 1"]);
    run(&["--tokens", "1", "--threads", "0"]).fails(2, &["at least one thread"]);
    run(&["--tokens", "1", "--backend", "tpu"]).fails(2, &["cpu", "gpu", "reference"]);
    run(&["--tokens", "1", "--quantize", "q9"]).fails(2, &["q8_0"]);
    run(&["--tokens", "1", "--kv-type", "q8_0"]).fails(2, &["f16"]);
    run(&["--tokens", "1", "--frobnicate"]).fails(2, &["--frobnicate"]);
    let many = vec!["1"; 100].join(",");
    run(&["--tokens", &many]).fails(1, &["100", "positions"]);
}

#[test]
fn a_gpu_is_computed_on_or_missed() {
    let user = User::new();
    let model = path("qwen3");
    let on = |backend| user.run(&["logits", &model, "--tokens", "1,2,3", "--backend", backend, "--json"]);
    let gpu = on("gpu");
    if !user.run(&["devices"]).fine().stdout.contains("lanes in step") {
        assert!(std::env::var_os("EXOTHERM_TEST_GPU").is_none(), "there must be a GPU, at least in software");
        // Unlike what `println!` prints, this is seen though the test passes.
        let _ = writeln!(std::io::stderr(), "SKIPPED on a GPU: there is none, not even in software");
        return gpu.fails(1, &["libvulkan", "exotherm devices"]);
    }
    let values = |json: &Value| -> Vec<f64> {
        let rows = json["logits"].as_array().expect("rows").iter();
        rows.flat_map(|row| row.as_array().expect("a row")).filter_map(Value::as_f64).collect()
    };
    assert!(gpu.stderr.contains("note: the GPU is "), "{}", gpu.stderr);
    let (gpu, reference) = (values(&gpu.json()), values(&on("reference").json()));
    assert_eq!(gpu.len(), reference.len());
    assert!(gpu.iter().zip(&reference).all(|(a, b)| (a - b).abs() < 1e-3));
    user.run(&["logits", &model, "--tokens", "1", "--backend", "gpu", "--isa", "avx2"])
        .fails(2, &["--isa", "gpu"]);
    // By itself it takes no GPU in software.
    let auto = on("auto").fine().stderr;
    let is_real = ["discrete", "integrated", "virtual", "unknown"];
    let devices = user.run(&["devices"]).fine().stdout;
    match is_real.iter().any(|kind| devices.contains(&format!(", {kind}"))) {
        true => assert!(auto.contains("note: the GPU is "), "{auto}"),
        false => assert!(auto.contains("no GPU but in software"), "{auto}"),
    }
}

#[test]
fn what_is_no_model_is_refused() {
    let user = User::new();
    let logits = |model: &str| user.run(&["logits", model, "--tokens", "1"]);
    logits("smolm2").fails(1, &["smolm2", "Did you mean smollm2", "hf:org/repo"]);
    logits("nowhere.gguf").fails(1, &["nowhere.gguf"]);
    logits(&user.write("notes.txt", "no model")).fails(1, &["notes.txt"]);
    logits(&user.write("broken.gguf", "GGUFxxxxxxxxxxxxxxxxxxxxxxxxxxx")).fails(1, &["broken.gguf"]);
    fs::create_dir(user.path("empty")).expect("a folder");
    logits("empty").fails(1, &["empty"]);
    logits("hf:nonsense").fails(1, &["hf:org/repo"]);
}

#[test]
fn text_becomes_ids_and_text_again() {
    let user = User::new();
    let model = user.talking_model("m", false);
    let tokenize = |options: &[&str]| user.run(&[&["tokenize", &model], options].concat());
    let json = tokenize(&["Hi qa", "--json"]).json();
    assert_eq!(json, serde_json::json!({ "ids": [41, 74, 1, 97], "pieces": ["H", "i", " ", "qa"] }));
    assert_eq!(tokenize(&["", "--json"]).json()["ids"], serde_json::json!([]));
    assert_eq!(tokenize(&[""]).fine().stdout, "");
    assert!(tokenize(&["Hi"]).fine().stdout.starts_with("41  \"H\"\n"));
    let file = user.write("text", "a\r\n");
    tokenize(&["--file", &file]).fails(1, &["0x0d", "offset 1"]);
    let file = user.write("text", "a\n\n");
    let ids = serde_json::json!([66, 96, 96]);
    assert_eq!(tokenize(&["--file", &file, "--json"]).json()["ids"], ids);
    let piped = user.run_with_stdin(&["tokenize", &model, "--json"], b"a\n\n").json();
    assert_eq!(piped["ids"], ids, "stdin is taken byte for byte");
    assert_eq!(tokenize(&["--decode", "41,74, 1,97"]).fine().stdout, "Hi qa");
    let decoded = tokenize(&["--decode", "41,74", "--json"]).json();
    assert_eq!(decoded, serde_json::json!({ "ids": [41, 74], "pieces": ["H", "i"], "text": "Hi" }));
    assert_eq!(tokenize(&["-5", "--json"]).json()["ids"], serde_json::json!([14, 22]));
}

/// A GGUF file of a family that nobody knows, with a small SentencePiece vocabulary and no weights.
fn vocabulary_alone(user: &User) -> String {
    let path = user.path("vocab.gguf");
    let tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"].map(str::as_bytes);
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", NewValue::Text(b"mamba9"));
    writer.set("tokenizer.ggml.model", NewValue::Text(b"llama"));
    writer.set("tokenizer.ggml.tokens", NewValue::Texts(&tokens));
    writer.set("tokenizer.ggml.scores", NewValue::F32s(&[0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0]));
    writer.set("tokenizer.ggml.token_type", NewValue::I32s(&[2, 3, 3, 1, 1, 1, 1, 1]));
    writer.set("tokenizer.ggml.bos_token_id", NewValue::U32(1));
    writer.set("tokenizer.ggml.eos_token_id", NewValue::U32(2));
    writer.create(&path, false).and_then(|sink| sink.finish()).expect("written");
    path.display().to_string()
}

#[test]
fn a_vocabulary_alone_is_enough() {
    let user = User::new();
    let model = vocabulary_alone(&user);
    let tokenize = |options: &[&str]| user.run(&[&["tokenize", &model], options].concat());
    let ids = |options: &[&str]| tokenize(&[options, &["--json"]].concat()).json()["ids"].clone();
    assert_eq!(ids(&["ab"]), serde_json::json!([1, 7]));
    assert_eq!(ids(&["ab", "--no-special"]), serde_json::json!([7]));
    assert_eq!(ids(&[""]), serde_json::json!([1]));
    assert_eq!(ids(&["", "--no-special"]), serde_json::json!([]));
    assert_eq!(ids(&["ab</s>"]), serde_json::json!([1, 7, 2]));
    let plain = ids(&["ab</s>", "--no-parse-special"]);
    assert!(numbers(&plain).len() > 3 && !numbers(&plain).contains(&2.0), "{plain}");
    assert_eq!(tokenize(&["--decode", "1,7"]).fine().stdout, "<s>ab");
    assert_eq!(tokenize(&["--decode", "1,7", "--no-special"]).fine().stdout, "ab");
    let json = user.run(&["inspect", &model, "--json"]).json();
    assert_eq!((json["architecture"].as_str(), json["tensors"].as_u64()), (Some("mamba9"), Some(0)));
    assert_eq!(json["tokenizer"], "llama, 8 tokens");
    user.run(&["logits", &model, "--tokens", "1"]).fails(1, &["mamba9"]);
}

#[test]
fn tokenize_refuses_what_cannot_be_done() {
    let user = User::new();
    let model = user.talking_model("m", false);
    let tokenize = |options: &[&str]| user.run(&[&["tokenize", &model], options].concat());
    tokenize(&["Hi", "--file", "x"]).fails(2, &["cannot be used with"]);
    tokenize(&["Hi", "--decode", "1"]).fails(2, &["cannot be used with"]);
    tokenize(&["--file", "nowhere"]).fails(1, &["nowhere"]);
    tokenize(&["--decode", "1,zwei"]).fails(2, &["\"zwei\""]);
    tokenize(&["--decode", "9999"]).fails(1, &["9999", "113"]);
    user.run(&["tokenize", &path("qwen3"), "Hi"]).fails(1, &["tokenizer.json", "exotherm logits"]);
}

/// Words that repeat, so that a model could foretell them.
fn book() -> String {
    (0..40).map(|i| format!("line {} of a book about nothing at all\n", i * i)).collect()
}

#[test]
fn perplexity_is_the_same_however_it_is_computed() {
    let user = User::new();
    let (model, file) = (user.talking_model("m", false), user.write("book", book()));
    let run = |options: &[&str]| {
        user.run(&[&["perplexity", &model, "--file", &file, "--ctx", "32", "--json"], options].concat())
            .json()
    };
    let cpu = run(&["--kv-type", "f32"]);
    let value = |json: &Value| json["perplexity"].as_f64().expect("a number");
    // A random model is no better than chance over its 113 tokens, and not much worse.
    assert!((50.0..100_000.0).contains(&value(&cpu)), "{cpu}");
    assert!(cpu["stderr"].as_f64().expect("a number") > 0.0);
    let windows = cpu["windows"].as_u64().expect("a count");
    assert_eq!(cpu["tokens"].as_u64(), Some(windows * 15), "positions 16 to 30 of each window");
    let reference = run(&["--kv-type", "f32", "--backend", "reference"]);
    assert!((value(&cpu) / value(&reference) - 1.0).abs() < 1e-4, "{cpu} {reference}");
    assert_ne!(value(&cpu), value(&run(&["--quantize", "bf16"])));
    let text = user.run(&["perplexity", &model, "--file", &file, "--ctx", "32"]).fine().stdout;
    assert!(text.starts_with("perplexity ") && text.contains('±'), "{text}");
    let run = |options: &[&str]| user.run(&[&["perplexity", &model], options].concat());
    run(&["--file", "nowhere"]).fails(1, &["nowhere"]);
    run(&["--file", &file, "--ctx", "2"]).fails(1, &["ctx"]);
    run(&["--file", &file, "--ctx", "0"]).fails(2, &["at least 1"]);
    run(&["--file", &file, "--ctx", "1000000000000"]).fails(1, &["1000000000000", "a smaller --ctx"]);
    run(&["--file", &user.write("short", "abc"), "--ctx", "32"]).fails(1, &["64 tokens", "has 3"]);
    run(&[]).fails(2, &["--file"]);
}

#[test]
fn selfcheck_agrees_on_every_kind_of_model() {
    let user = User::new();
    let isa = user.run(&["devices", "--json"]).json()["devices"][0]["isa"].clone();
    for case in ["llama-rope3", "qwen3moe-fused", "gemma3-six", "gpt2", "rwkv7/model.gguf"] {
        for options in [&[][..], &["--kv-type", "f16", "--threads", "2"], &["--quantize", "bf16"]] {
            let base = ["selfcheck", &path(case), "--tokens", "100", "--json"];
            let json = user.run(&[&base[..], options].concat()).json();
            assert_eq!(json["agrees"], true, "{case} {json}");
            // Both comparisons, each with its own measure.
            assert_eq!(json["operations"]["agrees"], true, "{case} {json}");
            assert_eq!(json["text"]["agrees"], true, "{case} {json}");
            assert_eq!(
                (&json["text"]["positions"], &json["text"]["against"]),
                (&100.into(), &"reference".into())
            );
            let rounds = options.contains(&"bf16") && isa == "avx512bf16";
            assert_eq!(json["rounds_activations"], rounds, "no weight is quantized: {json}");
            // Where activations are rounded, random weights may be of two minds.
            if !rounds {
                assert_eq!(json["hash"], json["reference_hash"], "{case} {json}");
                assert_eq!(json["first_divergence"], Value::Null);
            }
            assert!(json["worst_op"]["name"].is_string(), "{json}");
        }
    }
    let text = user.run(&["selfcheck", &path("qwen2"), "--tokens", "40"]).fine().stdout;
    for words in ["they agree", "hash cpu", "Computed right?", "What comes of it? 40 tokens in windows of 40"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    // Its vocabulary has no ß, so token ids have to do.
    user.run(&["selfcheck", &user.talking_model("m", false), "--tokens", "40"]).fine();
    user.run(&["selfcheck", &path("qwen2"), "--tokens", "0"]).fails(2, &["--tokens", "at least 1"]);
    let much = "1000000000000000000";
    user.run(&["selfcheck", &path("qwen2"), "--tokens", much]).fails(1, &["no room", "--tokens"]);
    let default = user.command(&["selfcheck"]).env("PATH", "").output().expect("the binary starts");
    Ran::from(default).fails(1, &["could not fetch 'smollm2'"]);
}

#[test]
fn selfcheck_takes_a_long_text_in_windows_that_the_model_has_room_for() {
    let user = User::new();
    let json = user.run(&["selfcheck", &path("qwen2"), "--json"]).json();
    assert_eq!((&json["agrees"], &json["text"]["positions"]), (&true.into(), &3072.into()), "{json}");
    assert!(json["window"].as_u64().is_some_and(|window| window <= 1024), "{json}");
    let bounds = &json["text"]["tolerance"];
    assert_eq!((&bounds["top1"], &bounds["op_error"]), (&0.999.into(), &Value::Null), "{json}");
    let small = user.run(&["selfcheck", &path("gpt2"), "--tokens", "100", "--json"]).json();
    let context: Value =
        serde_json::from_slice(&fs::read(golden("gpt2").join("config.json")).expect("read")).expect("JSON");
    assert_eq!(small["window"].as_u64(), context["n_positions"].as_u64().map(|n| n.min(100)), "{small}");
}

#[test]
fn selfcheck_of_float_weights_compares_with_the_exact_reference() {
    let user = User::new();
    // Rows of 36 have no whole blocks, so --quantize leaves them as they are. (`real_weights.rs` has quantized ones.)
    let model = path("llama-rope3");
    let json = user.run(&["selfcheck", &model, "--quantize", "q8_0", "--tokens", "100", "--json"]).json();
    assert_eq!((&json["rounds_activations"], &json["agrees"]), (&false.into(), &true.into()), "{json}");
    for part in ["operations", "text"] {
        let (against, bounds) = (&json[part]["against"], &json[part]["tolerance"]);
        assert_eq!((against, &bounds["mean_kl"]), (&"reference".into(), &1e-6.into()), "{json}");
        assert_eq!(json[part]["missed"], serde_json::json!([]), "{json}");
    }
}

#[test]
fn bench_measures_without_a_tokenizer() {
    let user = User::new();
    let model = path("qwen2");
    let json =
        user.run(&["bench", &model, "-p", "20", "-n", "8", "-r", "3", "--threads", "2", "--json"]).json();
    let tests = json["tests"].as_array().expect("tests");
    assert_eq!(tests.iter().map(|t| t["test"].as_str()).collect::<Vec<_>>(), [Some("pp20"), Some("tg8")]);
    for test in tests {
        let mut samples = numbers(&test["samples"]);
        samples.sort_by(f64::total_cmp);
        assert_eq!(samples.len(), 3);
        assert!(samples[0] > 0.0);
        assert_eq!(test["tok_s"].as_f64(), Some(samples[1]), "the median");
        assert_eq!(test["threads"], 2);
    }
    for field in ["load_s", "weight_bytes_per_token", "resident_bytes"] {
        assert!(json[field].as_f64().is_some_and(|v| v > 0.0), "{field}: {json}");
    }
    let isa = user.run(&["devices", "--json"]).json()["devices"][0]["isa"].clone();
    assert_eq!((&json["isa"], &json["threads"]), (&isa, &2.into()), "{json}");
    let reference = ["-p", "2", "-n", "0", "-r", "1", "--backend", "reference", "--json"];
    let reference = user.run(&[&["bench", &model], &reference[..]].concat()).json();
    let all = user.run(&["devices", "--json"]).json()["devices"][0]["hardware_threads"].clone();
    assert_eq!((&reference["isa"], &reference["threads"]), (&Value::Null, &all), "{reference}");
    let quantized =
        user.run(&["bench", &model, "-p", "0", "-n", "2", "-r", "1", "--quantize", "f16", "--json"]);
    let (full, half) = (&json["weight_bytes_per_token"], &quantized.json()["weight_bytes_per_token"]);
    assert!(half.as_f64() < full.as_f64().map(|v| v * 0.6), "{half} {full}");
    let text = user.run(&["bench", &model, "-p", "4", "-n", "2", "-r", "1"]).fine().stdout;
    assert!(text.starts_with("TEST") && text.contains("\npp4 ") && text.contains("\ntg2 "), "{text}");
    let told = format!("cpu {}, ", isa.as_str().expect("a name"));
    assert!(text.contains(&told), "no {told} in {text}");
    user.run(&["bench", &model, "-p", "0", "-n", "0"]).fails(2, &["nothing to measure"]);
    user.run(&["bench", &model, "-n", "0", "--batch", "4"]).fails(2, &["--batch", "-n 0"]);
    user.run(&["bench", &model, "-n", "0", "--depth", "64"]).fails(2, &["--depth", "-n 0"]);
    user.run(&["bench", &model, "-n", "4", "--batch", "4,1,4"]).fails(2, &["tg4@b4 twice"]);
    user.run(&["bench", &model, "-n", "4", "--depth", "3,16"]).fails(2, &["tg4@d16 twice", "blocks of 16"]);
    user.run(&["bench", &model, "-r", "0"]).fails(2, &["at least 1"]);
    user.run(&["bench", &path("gpt2"), "-p", "9999"]).fails(1, &["10000", "positions"]);
}

/// What a step takes, where something is written: every part of it is there, and they sum to the whole.
fn check_split(test: &Value) {
    let split = &test["split"];
    assert_eq!(split.is_null(), test["test"].as_str().is_some_and(|name| name.starts_with("pp")), "{test}");
    let Some(split) = split.as_object() else { return };
    let mut parts = 0.0;
    for part in ["kv_write", "attention", "projections", "feed_forward", "head", "other"] {
        let ms = split[&format!("{part}_ms")].as_f64().expect("a number");
        // A recurrent model has no keys and values.
        assert!(ms > 0.0 || part == "kv_write", "{part}: {test}");
        parts += ms;
    }
    let total = split["step_ms"].as_f64().expect("a number");
    assert!((parts - total).abs() < 1e-9, "{parts} is not {total}");
}

#[test]
fn bench_measures_sequences_together_and_at_depth() {
    let user = User::new();
    for model in [path("llama-rope3"), path("rwkv7/model.gguf")] {
        let options = ["-n", "3", "-r", "2", "--batch", "1,3", "--depth", "0,20", "-p", "4", "--json"];
        let json = user.run(&[&["bench", &model], &options[..]].concat()).json();
        let tests = json["tests"].as_array().expect("tests");
        let named: Vec<_> = tests.iter().map(|t| (t["test"].as_str(), &t["batch"], &t["depth"])).collect();
        let expected =
            [("pp4", 1, 0), ("tg3", 1, 0), ("tg3@b3", 3, 0), ("tg3@d32", 1, 32), ("tg3@b3@d32", 3, 32)]
                .map(|(name, batch, depth)| (name, Value::from(batch), Value::from(depth)));
        assert_eq!(named, expected.iter().map(|(n, b, d)| (Some(*n), b, d)).collect::<Vec<_>>());
        for test in tests {
            assert!(numbers(&test["samples"]).iter().all(|v| *v > 0.0) && test["threads"].is_u64(), "{test}");
            check_split(test);
        }
    }
    let text = user
        .run(&["bench", &path("qwen3moe"), "-p", "4", "-n", "3", "-r", "1", "--batch", "1,2"])
        .fine()
        .stdout;
    assert!(text.contains("SCALE\n") && text.contains("MS A STEP  KV WRITE  ATTENTION"), "{text}");
    let run = |options: &[&str]| user.run(&[&["bench", &path("gpt2")], options].concat());
    run(&["--batch", "0"]).fails(2, &["--batch", "from 1 to 1024"]);
    run(&["--batch", "4,x"]).fails(2, &["--batch", "whole number"]);
    run(&["--depth", "-1"]).fails(2, &["--depth", "\"-1\"", "from 0 on"]);
    run(&["--depth", "1,,2"]).fails(2, &["--depth", "whole number"]);
    run(&["-p", "0", "-n", "4", "--depth", "9999"]).fails(1, &["10005", "positions", "--depth"]);
    let huge = "1000000000000";
    user.run(&["bench", &path("qwen2"), "-p", "0", "--depth", huge]).fails(1, &["no room", "--depth"]);
}

/// A recurrent state does not grow with the tokens, but they themselves have to lie somewhere.
#[cfg(target_os = "linux")]
#[test]
fn more_tokens_than_there_is_memory_for_are_refused() {
    let user = User::new();
    let limited = |args: &str| -> Ran {
        let (binary, model) = (env!("CARGO_BIN_EXE_exotherm"), path("rwkv7/model.gguf"));
        let line = format!(
            "ulimit -v 3000000; exec '{binary}' {} --threads 1",
            args.replace("MODEL", &format!("'{model}'"))
        );
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &line]).env("EXOTHERM_HOME", user.path("store"));
        command.output().expect("there is a shell").into()
    };
    limited("bench MODEL -p 800000000 -n 0 -r 1")
        .fails(1, &["no room for 1 sequences of 800000001", "-p, -n"]);
    limited("bench MODEL -p 0 -n 4 -r 1 --batch 4 --depth 200000000").fails(1, &["no room", "--depth"]);
    limited("profile MODEL -p 800000000 -n 0 -r 1")
        .fails(1, &["no room for 1 sequences of 800000001", "-p, -n"]);
}

#[test]
fn inspect_tells_what_it_can() {
    let user = User::new();
    let json = user.run(&["inspect", &path("llama-rope3"), "--ctx", "32", "--json"]).json();
    assert_eq!(json["model"]["family"], "llama");
    let config: Value =
        serde_json::from_slice(&fs::read(golden("llama-rope3").join("config.json")).expect("read"))
            .expect("JSON");
    assert_eq!(json["model"]["layers"], config["num_hidden_layers"]);
    let kv = config["num_key_value_heads"].as_u64().zip(config["head_dim"].as_u64()).map(|(heads, dim)| {
        // Keys in f16, and values that are filled up to whole vectors of sixteen.
        2 * heads * (dim + dim.next_multiple_of(16)) * config["num_hidden_layers"].as_u64().unwrap_or(0)
    });
    assert_eq!(json["memory"]["kv_bytes_per_token"].as_u64(), kv);
    assert_eq!(json["memory"]["kv"].as_u64(), kv.map(|kv| 32 * kv));
    let ops = json["model"]["ops"].as_array().expect("groups of ops");
    assert_eq!(ops[1]["times"], config["num_hidden_layers"]);
    assert_eq!(ops[1]["ops"].as_array().map(Vec::len), Some(6), "{ops:?}");
    let text = user.run(&["inspect", &path("rwkv7/model.gguf")]).fine().stdout;
    for word in ["rwkv7", "recurrent", "time_mix", "channel_mix", "f32"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let json = user.run(&["inspect", &path("qwen3moe-fused"), "--json"]).json();
    assert_eq!(json["model"]["experts"], 7);
    let ops = json["model"]["ops"].to_string();
    assert!(ops.contains("moe_route"), "{ops}");
}

#[test]
fn inspect_of_what_cannot_run_says_why() {
    let user = User::new();
    let dir = user.path("unknown");
    fs::create_dir(&dir).expect("a folder");
    fs::copy(golden("qwen2").join("model.safetensors"), dir.join("model.safetensors")).expect("a copy");
    fs::write(dir.join("config.json"), r#"{"model_type":"mamba9"}"#).expect("written");
    let json = user.run(&["inspect", "unknown", "--json"]).json();
    assert_eq!((json["architecture"].as_str(), &json["model"]), (Some("mamba9"), &Value::Null));
    assert!(json["error"].as_str().is_some_and(|e| e.contains("mamba9") && e.contains("llama")), "{json}");
    assert!(json["tensors"].as_u64() > Some(5));
    let text = user.run(&["inspect", "unknown"]).fine().stdout;
    assert!(text.contains("cannot be run") && text.contains("mamba9"), "{text}");
}

#[test]
fn quantize_writes_a_file_that_loads() {
    let user = User::new();
    let input = path("llama-linear-tied/model.gguf");
    let out = user.path("out.gguf").display().to_string();
    let json = user.run(&["quantize", &input, &out, "--to", "f16", "--json"]).json();
    assert!(
        json["converted"].as_u64() > Some(5) && json["bytes_out"].as_u64() < json["bytes_in"].as_u64(),
        "{json}"
    );
    let want = expected("llama-linear-tied");
    let have = user.run(&["logits", &out, "--tokens", &list(&want["tokens"]), "--json"]).json();
    let last = want["logits"].as_array().and_then(|rows| rows.last()).expect("rows");
    for (have, want) in numbers(&have["logits"][0]).iter().zip(numbers(last)) {
        assert!((have - want).abs() < 0.1, "{have} {want}");
    }
    // Said where there is nothing to quantize, and only there.
    let noted = |model: &str| {
        let ran = user.run(&["logits", model, "--tokens", "1", "--quantize", "q4_0"]).fine();
        ran.stderr.contains("changes nothing")
    };
    assert!(!noted(&input));
    let quantize = |options: &[&str]| user.run(&[&["quantize", &input, &out], options].concat());
    quantize(&["--to", "f16"]).fails(1, &["out.gguf", "--force"]);
    quantize(&["--to", "f16", "--force"]).fine();
    quantize(&["--to", "q7"]).fails(2, &["q8_0"]);
    quantize(&[]).fails(2, &["--to"]);
    user.run(&["quantize", &input, &input, "--to", "f16", "--force"]).fails(1, &["input itself"]);
    user.run(&["quantize", "nowhere", &out, "--to", "f16", "--force"]).fails(1, &["nowhere"]);
    user.run(&["quantize", &path("qwen2"), "x", "--to", "f16"]).fails(1, &["GGUF"]);
}
