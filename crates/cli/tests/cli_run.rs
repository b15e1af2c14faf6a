//! `exotherm run`: what is the model, what is the prompt, what comes out where.

mod common;

use std::fs;
use std::io::Read;
use std::process::Stdio;

use common::{Ran, User, golden};
use serde_json::Value;

/// Greedy, short and on two threads.
const SHORT: [&str; 6] = ["--temperature", "0", "--max-tokens", "12", "--threads", "2"];

fn run(user: &User, args: &[&str]) -> Ran {
    user.run(&[&["run"], args, &SHORT].concat())
}

fn json(user: &User, args: &[&str]) -> Value {
    run(user, &[args, &["--json"]].concat()).json()
}

#[test]
fn the_answer_is_on_stdout_and_all_else_on_stderr() {
    let user = User::new();
    let model = user.talking_model("m", true);
    let plain = run(&user, &[&model, "Hello there"]).fine();
    let json = json(&user, &[&model, "Hello there"]);
    let text = json["text"].as_str().expect("a text");
    assert!(!text.is_empty());
    assert_eq!(plain.stdout.trim_end_matches('\n'), text.trim_end_matches('\n'));
    assert!(plain.stderr.starts_with("prompt "), "{}", plain.stderr);
    assert_eq!(plain.stderr.lines().count(), 1, "{}", plain.stderr);
    let tokens = json["tokens"].as_array().expect("ids").len();
    assert_eq!(json["generated_tokens"].as_u64(), Some(tokens as u64));
    // [user] Hello there⏎[bot]
    assert_eq!(json["prompt_tokens"], 7 + 11 + 1 + 5);
    let reason = json["reason"].as_str().expect("a reason");
    assert!(reason == "end" || (reason == "length" && tokens == 12), "{json}");
    assert!(json["timings"]["first_token_s"].as_f64() > json["timings"]["load_s"].as_f64(), "{json}");
    assert!(json["backend"] == "cpu" && json["isa"].is_string() && json["threads"].is_u64(), "{json}");
    let scalar = crate::json(&user, &[&model, "Hello there", "--isa", "scalar"]);
    assert_eq!((&scalar["isa"], &scalar["threads"]), (&"scalar".into(), &2.into()), "{scalar}");
    let reference = crate::json(&user, &[&model, "Hello there", "--backend", "reference"]);
    let all = user.run(&["devices", "--json"]).json()["devices"][0]["hardware_threads"].clone();
    assert_eq!((&reference["isa"], &reference["threads"]), (&Value::Null, &all), "{reference}");
}

#[test]
fn raw_prompts_and_system_prompts_change_what_the_model_reads() {
    let user = User::new();
    let model = user.talking_model("m", true);
    let prompt_tokens = |args: &[&str]| json(&user, args)["prompt_tokens"].clone();
    assert_eq!(prompt_tokens(&[&model, "Hi", "--raw"]), 2);
    assert_eq!(prompt_tokens(&[&model, "Hi", "--system", "Be"]), 9 + 2 + 1 + 7 + 2 + 1 + 5);
    run(&user, &[&model, "Hi", "--raw", "--system", "Be"]).fails(2, &["cannot be used with"]);
    let bare = user.talking_model("bare", false);
    let said = run(&user, &[&bare, "Hi"]).fine();
    assert_eq!(said.stderr.matches("no chat template").count(), 1, "{}", said.stderr);
    assert_eq!(run(&user, &[&bare, "Hi", "--raw"]).fine().stderr.matches("no chat template").count(), 0);
    run(&user, &[&bare, "Hi", "--system", "Be"]).fails(1, &["no chat template", "--system"]);
}

#[test]
fn every_sampling_flag_takes_effect() {
    let user = User::new();
    let model = user.talking_model("m", true);
    let text = |args: &[&str]| {
        let base = ["run", &model, "Hello", "--max-tokens", "24", "--json"];
        user.run(&[&base, args].concat()).json()["tokens"].clone()
    };
    let hot = ["--temperature", "3", "--top-p", "1", "--min-p", "0", "--top-k", "0"];
    let seeded = |args: &[&str]| text(&[&hot, &["--seed", "7"][..], args].concat());
    let base = seeded(&[]);
    assert_eq!(base, seeded(&["--threads", "1"]), "a seed gives the same answer again");
    let greedy = text(&["--temperature", "0"]);
    assert_ne!(base, greedy);
    assert_eq!(greedy, text(&["--temperature", "0", "--seed", "9"]));
    assert_eq!(greedy, text(&["--temperature", "3", "--top-k", "1"]));
    assert_eq!(greedy, text(&["--temperature", "3", "--top-p", "0.000001"]));
    assert_eq!(greedy, text(&["--temperature", "3", "--min-p", "1"]));
    for changed in [["--repeat-penalty", "9"], ["--presence-penalty", "90"], ["--frequency-penalty", "90"]] {
        assert_ne!(greedy, text(&[&["--temperature", "0"], &changed[..]].concat()), "{changed:?}");
    }
    let drawn = |seed: &str| text(&[&hot, &["--seed", seed][..]].concat());
    assert_ne!(drawn("1"), drawn("2"));
    let refused = |args: &[&str]| run(&user, &[&[model.as_str(), "Hi"], args].concat());
    refused(&["--top-p", "0"]).fails(2, &["top_p"]);
    refused(&["--repeat-penalty", "-1"]).fails(2, &["repeat_penalty", "more than 0"]);
    let negative = user.run(&["run", &model, "Hi", "--temperature", "-1"]);
    negative.fails(2, &["temperature", "0 or more"]);
    user.run(&["run", &model, "Hi", "--temperature", "warm"]).fails(2, &["warm"]);
}

#[test]
fn stop_strings_end_the_answer_before_them() {
    let user = User::new();
    let model = user.talking_model("m", true);
    let whole = json(&user, &[&model, "Hello"])["text"].as_str().expect("a text").to_string();
    let stop: String = whole.chars().skip(3).take(2).collect();
    let cut = json(&user, &[&model, "Hello", "--stop", "never comes", "--stop", &stop]);
    assert_eq!(cut["reason"], "stop");
    assert_eq!(cut["text"].as_str(), whole.split(&stop).next());
    run(&user, &[&model, "Hello", "--stop", ""]).fails(2, &["--stop"]);
}

#[test]
fn a_prompt_is_never_cut() {
    let user = User::new();
    let model = user.talking_model("m", true);
    run(&user, &[&model, "Hello", "--ctx", "10"]).fails(1, &["18 tokens", "it is 10", "--ctx"]);
    let base = ["run", &model, "Hello", "--temperature", "0"];
    let numbers = ["prompt of 18 tokens and 20 tokens", "context of 38", "it is 24"];
    user.run(&[&base[..], &["--ctx", "24", "--max-tokens", "20"]].concat()).fails(1, &numbers);
    let full = user.run(&[&base[..], &["--ctx", "24", "--json"]].concat());
    if full.json()["reason"] == "length" {
        assert_eq!(full.json()["generated_tokens"], 6);
        assert!(full.stderr.contains("context of 24 tokens is full"), "{}", full.stderr);
    }
    user.run(&[&base[..], &["--ctx", "0"]].concat()).fails(2, &["at least 1"]);
    user.run(&[&base[..], &["--max-tokens", "0"]].concat()).fails(2, &["at least 1"]);
}

#[test]
fn stdin_is_the_prompt_only_when_there_is_none() {
    let user = User::new();
    let model = user.talking_model("m", true);
    let piped = |args: &[&str], stdin: &[u8]| {
        user.run_with_stdin(&[&["run"], args, &SHORT, &["--json"]].concat(), stdin)
    };
    let want = json(&user, &[&model, "Hello"]);
    for stdin in [&b"Hello"[..], b"Hello\n", b"Hello\r\n"] {
        assert_eq!(
            piped(&[&model], stdin).json()["tokens"],
            want["tokens"],
            "one newline at the end is not counted"
        );
    }
    assert_eq!(piped(&[&model], b"Hello\n\n").json()["prompt_tokens"], 19);
    assert_eq!(piped(&[&model, "Hello"], b"something else").json()["tokens"], want["tokens"]);
    piped(&[&model], b"").fails(1, &["the prompt is empty"]);
    piped(&[&model], b"\n").fails(1, &["the prompt is empty"]);
    piped(&[&model], b"ab\xff").fails(1, &["offset 2", "UTF-8"]);
    run(&user, &[&model, ""]).fails(1, &["the prompt is empty"]);
}

#[test]
fn a_lone_argument_is_a_model_only_if_it_can_be_one() {
    let user = User::new();
    let model = user.talking_model("m", true);
    // With no PROMPT and nothing piped in, a model's prompt is empty.
    for model in ["m", "./m", &model] {
        user.run(&["run", model]).fails(1, &["the prompt is empty"]);
    }
    // Of the known names and the hub nothing can be fetched here, and that is what is said.
    user.run_with_stdin(&["run", "hf:org/repo"], b"Hello").fails(1, &["org/repo"]);
    // Everything else is a prompt for the default model, which is not here either.
    for prompt in ["Why?", "smolm2", "no-such-file.gguf"] {
        let ran = user.command(&["run", prompt]).env("PATH", "").output().expect("it starts");
        let ran = Ran::from(ran);
        ran.fails(1, &["could not fetch 'smollm2'", "give a file instead"]);
    }
    user.run(&["run", "nowhere.gguf", "Hello"]).fails(1, &["no model 'nowhere.gguf'"]);
    user.run(&["run", "m", "Hello", "there"]).fails(2, &["there"]);
    user.run(&["run", &golden("qwen3").display().to_string(), "Hello"]).fails(1, &["tokenizer.json"]);
}

#[test]
fn backends_and_types_of_the_cache_can_be_chosen() {
    let user = User::new();
    let model = user.talking_model("m", true);
    let want = json(&user, &[&model, "Hello", "--kv-type", "f32"]);
    let reference = user.run(&[
        "run",
        &model,
        "Hello",
        "--kv-type",
        "f32",
        "--backend",
        "reference",
        "--temperature",
        "0",
        "--max-tokens",
        "12",
        "--json",
    ]);
    assert_eq!(reference.json()["tokens"], want["tokens"]);
    json(&user, &[&model, "Hello", "--quantize", "q8_0"]);
    run(&user, &[&model, "Hello", "--kv-type", "q4_0"]).fails(2, &["f32", "f16"]);
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let user = User::new();
    let model = user.talking_model("m", true);
    let tokens = vec!["7"; 60].join(",");
    let positions = (0..60).map(|p| p.to_string()).collect::<Vec<_>>().join(",");
    let commands: [&[&str]; 4] = [
        &["run", &model, "Hello", "--temperature", "0", "--max-tokens", "50"],
        &["logits", &model, "--tokens", &tokens, "--positions", &positions, "--json"],
        &["completions", "bash"],
        &["models"],
    ];
    for args in commands {
        let mut command = user.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("read");
        assert_eq!(child.wait().expect("it ends").code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains("panic") && !stderr.contains("error"), "{args:?}: {stderr}");
    }
}

#[test]
fn the_end_of_generation_of_the_folder_counts() {
    let user = User::new();
    let model = user.talking_model("m", true);
    let whole = json(&user, &[&model, "Hello"]);
    let tokens = whole["tokens"].as_array().expect("ids");
    let end = tokens[4].clone();
    let before: Vec<_> = tokens.iter().take_while(|t| **t != end).cloned().collect();
    let config = serde_json::json!({ "eos_token_id": [112, end] }).to_string();
    fs::write(user.path("m/generation_config.json"), config).expect("written");
    let cut = json(&user, &[&model, "Hello"]);
    assert_eq!((cut["tokens"].as_array(), &cut["reason"]), (Some(&before), &Value::from("end")));
}

/// Work that would take hours, and the signal that Ctrl-C sends.
#[test]
#[cfg(unix)]
fn ctrl_c_ends_the_work_with_its_own_exit_code() {
    let user = User::new();
    let model = golden("qwen2").display().to_string();
    let mut command = user.command(&["bench", &model, "-p", "16", "-n", "0", "-r", "100000000"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let id = child.id().to_string();
    let sent = std::process::Command::new("kill").args(["-INT", &id]).status().expect("kill is there");
    assert!(sent.success());
    let ran = Ran::from(child.wait_with_output().expect("it ends"));
    ran.fails(130, &["interrupted"]);
}
