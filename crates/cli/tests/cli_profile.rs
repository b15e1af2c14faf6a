//! `profile`, `devices --measure`, `--isa` and the trace of attention.

mod common;

use std::fs;

use common::{Ran, User, golden, numbers};
use serde_json::Value;

fn path(case: &str) -> String {
    golden(case).display().to_string()
}

/// A user for whom this machine's limits are known for two threads.
fn measured() -> User {
    let user = User::new();
    user.run(&["devices", "--measure", "--seconds", "0.01", "--threads", "2"]).fine();
    user
}

fn profile(user: &User, case: &str, args: &[&str]) -> Value {
    let base = ["profile", &path(case), "-p", "40", "-n", "5", "-r", "1", "--threads", "2", "--json"];
    user.run(&[&base, args].concat()).json()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn a_profile_sums_to_its_total() {
    let user = measured();
    for (case, batch) in [("qwen3", 1), ("qwen3moe", 3), ("rwkv7/model.gguf", 2)] {
        let json = profile(&user, case, &["--batch", &batch.to_string(), "--per-op"]);
        let phases = json["phases"].as_array().expect("phases");
        let names: Vec<_> = phases.iter().map(|p| (p["phase"].as_str(), p["tokens"].as_u64())).collect();
        assert_eq!(names, [(Some("prompt"), Some(40 * batch)), (Some("decode"), Some(5 * batch))]);
        assert_eq!(phases[1]["steps"], 5);
        for phase in phases {
            let total = number(&phase["total"]["time_s"]);
            let other = number(&phase["other"]["time_s"]);
            assert!(other >= 0.0 && total > 0.0, "{phase}");
            for list in ["ops", "program"] {
                let ops = phase[list].as_array().expect("ops");
                let sum: f64 = ops.iter().map(|op| number(&op["time_s"])).sum();
                assert!((sum + other - total).abs() < 1e-8, "{case} {list}: {sum} + {other} is not {total}");
                let shares: f64 = ops.iter().map(|op| number(&op["share"])).sum();
                assert!((shares + number(&phase["other"]["share"]) - 1.0).abs() < 1e-6, "{case}: {shares}");
            }
            assert_eq!(phase["program"][0]["index"], 0);
        }
    }
}

#[test]
fn work_is_counted_from_the_program() {
    let user = measured();
    let json = profile(&user, "qwen3", &[]);
    let kinds = |phase: usize| json["phases"][phase]["ops"].as_array().expect("ops").clone();
    let op = |phase: usize, name: &str| {
        kinds(phase).into_iter().find(|op| op["op"] == name).unwrap_or_else(|| panic!("no {name}"))
    };
    let bench = user.run(&["bench", &path("qwen3"), "-p", "0", "-n", "1", "-r", "1", "--json"]).json();
    let weights = number(&bench["weight_bytes_per_token"]);
    let read: f64 = kinds(1).iter().map(|op| number(&op["weight_bytes"])).sum();
    assert_eq!(read, 5.0 * weights, "every step reads all weights once");
    // The answers begin behind three whole blocks: positions 48 to 52 see 49 to 53 of them.
    let attention = op(1, "attention");
    let inspected = user.run(&["inspect", &path("qwen3"), "--json"]).json();
    let of_model = |name: &str| number(&inspected["model"][name]);
    // Keys and values in f16.
    let per_token = 2.0 * 2.0 * of_model("layers") * of_model("kv_heads") * of_model("head_dim");
    assert_eq!(number(&attention["state_bytes"]), per_token * (49 + 50 + 51 + 52 + 53) as f64);
    let model = &inspected["model"];
    let width = number(&model["heads"]) * number(&model["head_dim"]) * number(&model["layers"]);
    assert_eq!(number(&attention["float_ops"]), 4.0 * width * (49 + 50 + 51 + 52 + 53) as f64);
    assert_eq!(number(&op(0, "attention")["float_ops"]), 4.0 * width * (40 * 41 / 2) as f64);
    assert_eq!(number(&op(1, "qk_rope_write")["state_bytes"]), 5.0 * per_token);
    let binding = ["memory read", "integer units", "BF16 units", "float units", "caches", "cache/latency"];
    for op in kinds(0) {
        assert!(binding.contains(&op["binds"].as_str().expect("a name")), "{op}");
        assert!(number(&op["limit"]) >= 0.0 && number(&op["bytes"]) > 0.0, "{op}");
    }
    let experts = profile(&user, "qwen3moe", &["--batch", "2"]);
    let gate_up = |phase: usize| {
        let ops = experts["phases"][phase]["ops"].as_array().expect("ops");
        ops.iter().find(|op| op["op"] == "moe_gate_up").expect("experts").clone()
    };
    let of_a_step =
        |phase: usize| number(&gate_up(phase)["weight_bytes"]) / number(&experts["phases"][phase]["steps"]);
    assert!(of_a_step(1) < of_a_step(0), "few rows reach few experts");
}

#[test]
fn the_table_of_a_profile_fits_a_terminal() {
    let user = User::new();
    let model = path("qwen3");
    let ran = user.run(&["profile", &model, "-p", "8", "-n", "2", "-r", "1", "--threads", "1"]).fine();
    assert!(ran.stderr.contains("measuring this machine's limits"), "{}", ran.stderr);
    for part in
        ["memory read", "prompt: 8 tokens", "decode: 2 tokens", "norm_linear", "other", "total", "BINDS"]
    {
        assert!(ran.stdout.contains(part), "no {part} in {}", ran.stdout);
    }
    let table = ran.stdout.lines().skip(1);
    table.for_each(|line| assert!(line.chars().count() <= 110, "{line}"));
    let again = user.run(&["profile", &model, "-p", "8", "-n", "2", "-r", "1", "--threads", "1"]).fine();
    // Other tests may keep the machine busy while the limits are measured.
    let is_doubt = |line: &str| line.starts_with("note: ") && line.contains("measured on a busy machine");
    assert!(again.stderr.lines().all(is_doubt), "the limits are measured once: {}", again.stderr);
    assert_eq!(again.stdout.lines().filter(|line| line.starts_with("total")).count(), 2);
    let reference = user.run(&["profile", &model, "-p", "8", "-n", "0", "-r", "1", "--backend", "reference"]);
    let reference = reference.fine().stdout;
    assert!(reference.contains("norm_linear") && !reference.contains("BINDS"), "{reference}");
    user.run(&["profile", &model, "-p", "0", "-n", "0"]).fails(2, &["nothing to measure"]);
    user.run(&["profile", &model, "--batch", "0"]).fails(2, &["--batch"]);
    user.run(&["profile", &path("gpt2"), "-p", "9999"]).fails(1, &["positions"]);
}

#[test]
fn limits_are_kept_for_this_machine_only() {
    let user = User::new();
    let limits = |args: &[&str]| {
        let json = user.run(&[&["devices", "--json"], args].concat()).json();
        json["devices"][0]["limits"].clone()
    };
    assert_eq!(limits(&[]), Value::Null);
    let measured = limits(&["--measure", "--seconds", "0.01"]);
    for limit in ["memory_read_bytes_s", "integer_ops_s", "float_ops_s"] {
        assert!(number(&measured[limit]["best"]) >= number(&measured[limit]["median"]), "{measured}");
        assert!(number(&measured[limit]["median"]) > 1e8, "{measured}");
    }
    let isa = user.run(&["devices", "--json"]).json()["devices"][0]["isa"].clone();
    assert_eq!(measured["bf16_ops_s"].is_null(), isa != "avx512bf16", "{measured}");
    assert_eq!(limits(&[]), measured);
    assert_eq!(limits(&["--threads", "3"]), Value::Null);
    assert_eq!(limits(&["--isa", "scalar"]), Value::Null);
    let scalar = limits(&["--isa", "scalar", "--measure", "--seconds", "0.01"]);
    assert_eq!((limits(&[]), limits(&["--isa", "scalar"])), (measured.clone(), scalar));
    let text = user.run(&["devices"]).fine().stdout;
    assert!(text.contains("memory read") && text.contains("GB/s") && text.contains("--isa scalar"), "{text}");
    // Of another processor they say nothing, and a broken file is as good as none.
    let file = user.path("store/limits.json");
    let kept = fs::read_to_string(&file).expect("the file");
    let mut foreign: Value = serde_json::from_str(&kept).expect("JSON");
    for entry in foreign["measured"].as_array_mut().expect("entries") {
        entry["machine"]["processor"] = "another".into();
    }
    fs::write(&file, foreign.to_string()).expect("written");
    assert_eq!(limits(&[]), Value::Null);
    fs::write(&file, &kept[..kept.len() / 2]).expect("written");
    assert_eq!(limits(&[]), Value::Null);
    assert!(user.run(&["devices"]).fine().stdout.contains("devices --measure"));
    user.run(&["devices", "--seconds", "1"]).fails(2, &["--measure"]);
    user.run(&["devices", "--forget"]).fails(2, &["--measure"]);
    user.run(&["devices", "--measure", "--seconds", "0"]).fails(2, &["0.01"]);
}

/// Limits that were measured while others had a part of the machine are told of by every profile that rests on them.
#[test]
fn limits_of_a_busy_machine_are_told_of() {
    let user = measured();
    let file = user.path("store/limits.json");
    let kept: Value = serde_json::from_slice(&fs::read(&file).expect("the file")).expect("JSON");
    let noted = |busy: Value| {
        let mut kept = kept.clone();
        for limit in ["memory_read_bytes_s", "integer_ops_s", "float_ops_s"] {
            let limit = &mut kept["measured"][0]["limits"][limit];
            assert!(limit["busy"].is_boolean(), "{limit}");
            *limit = serde_json::json!({ "best": 1e11, "median": 1e11, "busy": busy });
        }
        kept["measured"][0]["limits"]["bf16_ops_s"] = Value::Null;
        fs::write(&file, kept.to_string()).expect("written");
        let model = path("qwen3");
        let args = ["profile", &model, "-p", "8", "-n", "0", "-r", "1", "--threads", "2", "--json"];
        let ran = user.run(&args).fine();
        assert_eq!(ran.json()["limits"]["float_ops_s"]["busy"], busy == true);
        ran.stderr
    };
    let told = noted(true.into());
    // The weights are floats, and the speed of memory is measured with every profile.
    let out = "exotherm devices --measure --forget --threads 2 --isa";
    assert!(told.starts_with("note: floats: measured on a busy machine;") && told.contains(out), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert_eq!(noted(false.into()), "");
    // Files of earlier versions do not tell.
    assert_eq!(noted(Value::Null), "");
}

/// A machine that is busy while it is measured does not forget what it can do, unless it is told to.
#[test]
fn larger_limits_are_kept() {
    let user = User::new();
    let measure = ["devices", "--measure", "--seconds", "0.01", "--threads", "1", "--json"];
    let limits = |ran: Ran| ran.json()["devices"][0]["limits"].clone();
    user.run(&measure).fine();
    let file = user.path("store/limits.json");
    let mut kept: Value = serde_json::from_slice(&fs::read(&file).expect("the file")).expect("JSON");
    assert!(kept["measured"][0]["machine"]["design"].is_string(), "{kept}");
    let limit = &mut kept["measured"][0]["limits"];
    limit["memory_read_bytes_s"] = serde_json::json!({ "best": 1e15, "median": 9e14 });
    limit["float_ops_s"] = serde_json::json!({ "best": 1.0, "median": 1.0 });
    fs::write(&file, kept.to_string()).expect("written");
    let again = user.run(&measure).fine();
    assert!(
        again.stderr.contains("memory read: 1000000.0 GB/s of an earlier time are kept"),
        "{}",
        again.stderr
    );
    assert!(!again.stderr.contains("floats: 0.0"), "{}", again.stderr);
    let again = limits(again);
    assert_eq!(number(&again["memory_read_bytes_s"]["best"]), 1e15);
    assert!(number(&again["float_ops_s"]["best"]) > 1e6, "{again}");
    let anew = user.run(&[&measure[..], &["--forget"]].concat()).fine();
    assert!(!anew.stderr.contains("earlier"), "{}", anew.stderr);
    let anew = limits(anew);
    assert!(number(&anew["memory_read_bytes_s"]["best"]) < 1e14, "{anew}");
    assert_eq!(limits(user.run(&["devices", "--threads", "1", "--json"])), anew);
}

#[test]
fn instruction_levels_can_be_chosen() {
    let user = User::new();
    let model = path("qwen3");
    let there = user.run(&["devices", "--json"]).json()["devices"][0].clone();
    let levels: Vec<&str> =
        there["isas"].as_array().expect("levels").iter().filter_map(Value::as_str).collect();
    let isa = there["isa"].as_str().expect("a level");
    assert!(levels.contains(&"scalar") && levels.contains(&isa), "{there}");
    let logits = |args: &[&str]| {
        let base = ["logits", &model, "--tokens", "1,2,3", "--json"];
        numbers(&user.run(&[&base, args].concat()).json()["logits"][0])
    };
    let best = logits(&[]);
    for level in &levels {
        let near = logits(&["--isa", level]).iter().zip(&best).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(near, "{level}");
    }
    assert_eq!(logits(&["--isa", isa]), best);
    let base = ["logits", &model, "--tokens", "1"];
    let with = |args: &[&str]| user.run(&[&base, args].concat());
    with(&["--isa", "sse9"])
        .fails(2, &["sse9", "scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "neon"]);
    with(&["--isa", "scalar", "--backend", "reference"]).fails(2, &["--isa", "reference"]);
    let missing = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    for command in ["logits", "bench", "profile", "selfcheck"] {
        let tokens: &[&str] = if command == "logits" { &["--tokens", "1"] } else { &[] };
        let ran = user.run(&[&[command, &model, "--isa", missing], tokens].concat());
        ran.fails(1, &[&format!("no {missing}"), &levels.join(", ")]);
    }
}

/// The parts of a line in microseconds: `[attn] layer=0 QKV=0.358ms …`.
fn parts(line: &str) -> Vec<(String, u64)> {
    let rest = line.strip_prefix("[attn] ").unwrap_or_else(|| panic!("{line}"));
    let (layer, rest) = rest.split_once(' ').expect("parts");
    assert!(layer.strip_prefix("layer=").is_some_and(|n| n.parse::<usize>().is_ok()), "{line}");
    let part = |part: &str| {
        let (name, time) = part.split_once('=').expect("a name and a time");
        let (whole, decimals) = time.strip_suffix("ms").and_then(|t| t.split_once('.')).expect("0.000ms");
        assert_eq!(decimals.len(), 3, "{line}");
        (
            name.to_string(),
            whole.parse::<u64>().expect("a number") * 1000 + decimals.parse::<u64>().expect("one"),
        )
    };
    rest.split(' ').map(part).collect()
}

fn traced(user: &User, filter: &str, args: &[&str]) -> Vec<String> {
    let ran = user.command(args).env("RUST_LOG", filter).output().expect("the binary starts");
    let stderr = Ran::from(ran).fine().stderr;
    stderr.lines().filter(|line| line.starts_with("[attn]")).map(String::from).collect()
}

#[test]
fn the_trace_of_attention_tells_every_layer_of_every_step() {
    let user = User::new();
    let model = user.talking_model("m", true);
    let layers = user.run(&["inspect", &model, "--json"]).json()["model"]["layers"].as_u64().expect("layers");
    let run = ["run", &model, "Hello", "--raw", "--max-tokens", "3", "--temperature", "0", "--threads", "2"];
    let lines = traced(&user, "exotherm=trace", &run);
    // The prompt is one step, and the third token is not run.
    assert_eq!(lines.len() as u64, 3 * layers);
    let names = ["QKV", "QKnorm", "RoPE", "QK^T", "softmax", "A*V", "out", "other", "total"];
    let mut sums = [0; 9];
    for (i, line) in lines.iter().enumerate() {
        assert!(line.starts_with(&format!("[attn] layer={} QKV=", i as u64 % layers)), "{line}");
        let parts = parts(line);
        assert_eq!(parts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
        assert_eq!(parts[..8].iter().map(|(_, micros)| micros).sum::<u64>(), parts[8].1, "{line}");
        sums.iter_mut().zip(&parts).for_each(|(sum, (_, micros))| *sum += micros);
    }
    assert!(sums[0] > 0 && sums[6] > 0 && sums[8] > 0, "{sums:?}");
    for off in ["", "debug", "exotherm=info", "other=trace"] {
        assert!(traced(&user, off, &run).is_empty(), "{off:?}");
    }
}

#[test]
fn every_command_that_runs_a_model_can_be_traced() {
    let user = measured();
    let model = path("qwen3");
    let commands: [&[&str]; 5] = [
        &["bench", &model, "-p", "4", "-n", "2", "-r", "1"],
        &["profile", &model, "-p", "4", "-n", "2", "-r", "1", "--threads", "2"],
        &["logits", &model, "--tokens", "1,2", "--threads", "2"],
        &["logits", &model, "--tokens", "1,2", "--backend", "reference"],
        &["selfcheck", &model],
    ];
    for command in commands {
        let lines = traced(&user, "trace", command);
        assert!(!lines.is_empty(), "{command:?}");
        lines.iter().for_each(|line| assert_eq!(parts(line).len(), 9));
    }
    let recurrent = ["bench", &path("rwkv7/model.gguf"), "-p", "4", "-n", "2", "-r", "1"];
    assert!(traced(&user, "trace", &recurrent).is_empty(), "there is no attention");
}
