//! Files made to harm: each must be refused in plain words, within a second and in little memory.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Gguf, safetensors, text};
use exotherm_weights::{Checkpoint, WeightsError};

/// Counts the bytes that this thread has in use and remembers the most that there ever were.
struct Counting;

thread_local! {
    static IN_USE: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// The most that a refusal may take, beside the file itself.
const LIMIT: isize = 16 << 20;

fn count(bytes: isize) {
    let now = IN_USE.get() + bytes;
    IN_USE.set(now);
    MOST.set(MOST.get().max(now));
}

// SAFETY: every call is passed on to the system's allocator unchanged; the counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`, and `alloc` above took it from the system.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work`, which must end within a second, and says how many bytes it took at most.
fn watched<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = IN_USE.get();
    MOST.set(before);
    let start = Instant::now();
    let result = work();
    assert!(start.elapsed() < Duration::from_secs(1), "took {:?}", start.elapsed());
    (result, MOST.get() - before)
}

/// The error's text, once it came in time, in memory and without anything unprintable.
fn refusal(open: impl FnOnce() -> Result<Checkpoint, WeightsError>) -> String {
    let (result, most) = watched(open);
    let error = result.err().expect("must be refused").to_string();
    assert!(most < LIMIT, "took {most} bytes: {error}");
    assert!(error.len() < 8000 && !error.contains(char::is_control), "{error:?}");
    error
}

#[track_caller]
fn gguf_refused(bytes: Vec<u8>, says: &str) {
    let error = refusal(|| Checkpoint::from_gguf_bytes(bytes));
    assert!(error.contains(says), "{error:?} does not say {says:?}");
}

#[track_caller]
fn safetensors_refused(bytes: Vec<u8>, says: &str) {
    let error = refusal(|| Checkpoint::from_safetensors_bytes(bytes));
    assert!(error.contains(says), "{error:?} does not say {says:?}");
}

/// One tensor of f32 with these dimensions, 64 bytes of data.
fn shaped(dims: &[u64]) -> Vec<u8> {
    Gguf::default().tensor(b"w", dims, 0, 0).data(64).build()
}

#[test]
fn sizes_that_wrap_are_refused() {
    gguf_refused(shaped(&[1 << 63]), "\"w\"");
    gguf_refused(shaped(&[1 << 32, 1 << 32]), "cannot be that large");
    gguf_refused(shaped(&[1 << 62, 4]), "cannot be that large");
    gguf_refused(shaped(&[u64::MAX, 1, 1, 1]), "cannot be that large");
    gguf_refused(shaped(&[(1 << 62) + 4]), "cannot be that large");
    gguf_refused(shaped(&[4, 1 << 20, 1 << 20, 1 << 20]), "cannot be that large");
    gguf_refused(shaped(&[1 << 40, 1 << 20]), "past the end of the file");
    // 2^64 blocks of q4_0 would take 18 × 2^64 bytes, which wraps to a handful.
    let blocks = Gguf::default().tensor(b"w", &[1 << 37, 1 << 32], 2, 0).data(64).build();
    gguf_refused(blocks, "cannot be that large");
}

#[test]
fn wrong_dimensions_are_refused() {
    gguf_refused(shaped(&[]), "has 0 dimensions");
    gguf_refused(shaped(&[1, 1, 1, 1, 1]), "has 5 dimensions");
    gguf_refused(shaped(&[0]), "dimension of 0");
    gguf_refused(shaped(&[4, 0, u64::MAX]), "dimension of 0");
    let mut many = Gguf::default().tensor(b"w", &[4], 0, 0).data(64);
    many.tensors[0][9..13].copy_from_slice(&u32::MAX.to_le_bytes());
    gguf_refused(many.build(), "has 4294967295 dimensions");
    let partial = Gguf::default().tensor(b"w", &[33, 32], 2, 0).data(2048).build();
    gguf_refused(partial, "rows of 33, q4_0 stores blocks of 32");
}

#[test]
fn tensors_out_of_place_are_refused() {
    let at = |offset| Gguf::default().tensor(b"w", &[16], 0, offset).data(64).build();
    gguf_refused(at(32), "past the end of the file");
    gguf_refused(at(1 << 40), "past the end of the file");
    gguf_refused(at(u64::MAX - 31), "cannot be that large");
    gguf_refused(at(4), "no multiple of the alignment 32");
    let overlapping = Gguf::default().tensor(b"a", &[16], 0, 0).tensor(b"b", &[8], 0, 32).data(96).build();
    gguf_refused(overlapping, "\"a\" and \"b\" overlap");
    let same = Gguf::default().tensor(b"a", &[8], 0, 0).tensor(b"b", &[8], 0, 0).data(96).build();
    gguf_refused(same, "overlap");
    let mut whole = shaped(&[16]);
    assert!(Checkpoint::from_gguf_bytes(whole.clone()).is_ok());
    whole.pop();
    gguf_refused(whole, "past the end of the file");
}

#[test]
fn counts_beyond_the_file_are_refused() {
    for count in [1 << 63, u64::MAX, 1 << 40, 1000] {
        let tensors = Gguf { n_tensors: Some(count), ..Gguf::default() }.data(64).build();
        gguf_refused(tensors, "tensors, more than its size allows");
        let pairs = Gguf { n_pairs: Some(count), ..Gguf::default() }.data(64).build();
        gguf_refused(pairs, "metadata pairs, more than its size allows");
    }
    let both = Gguf { n_tensors: Some(3), n_pairs: Some(5), ..Gguf::default() }.data(128).build();
    gguf_refused(both, "a metadata key has 0 bytes");
}

#[test]
fn a_file_of_160_bytes_that_claims_gigabytes_is_refused() {
    let mut file = Gguf::default().tensor(b"token_embd.weight", &[1 << 17, 1 << 15], 0, 0).build();
    file.resize(160, 0);
    gguf_refused(file, "needs 17179869184 bytes at 0 of the data, past the end of the file");
    let mut strings = Gguf::default().array("tokenizer.ggml.tokens", common::TEXT, 1 << 30, &[]).build();
    strings.resize(160, 0);
    gguf_refused(strings, "it ends within \"tokenizer.ggml.tokens\"");
    let mut floats = Gguf::default().array("tokenizer.ggml.scores", common::F32, 1 << 30, &[]).build();
    floats.resize(160, 0);
    gguf_refused(floats, "4294967296 bytes");
}

#[test]
fn lengths_past_the_end_are_refused() {
    for length in [u64::MAX, 1 << 63, 1 << 32, 1000] {
        let long = Gguf::default().pair(b"k", common::TEXT, &length.to_le_bytes()).build();
        gguf_refused(long, "it ends within \"k\"");
        let mut key = Gguf::default().u32("key", 1);
        key.pairs[0][..8].copy_from_slice(&length.to_le_bytes());
        gguf_refused(key.build(), "it ends within \"metadata key\"");
        let mut name = Gguf::default().tensor(b"w", &[4], 0, 0).data(64);
        name.tensors[0][..8].copy_from_slice(&length.to_le_bytes());
        gguf_refused(name.build(), "it ends within \"tensor name\"");
        let array = Gguf::default().array("k", common::U8, length, &[1, 2, 3]).build();
        gguf_refused(array, "it ends within \"k\"");
    }
    let wrapping = Gguf::default().array("k", common::U64, 1 << 61, &[0; 64]).build();
    gguf_refused(wrapping, "array of 2305843009213693952 values");
}

#[test]
fn arrays_of_arrays_are_refused_however_deep() {
    let mut nested = Vec::new();
    for _ in 0..100_000 {
        nested.extend(common::ARRAY.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    gguf_refused(Gguf::default().pair(b"k", common::ARRAY, &nested).build(), "array of arrays");
    gguf_refused(Gguf::default().array("k", 13, 1, &[0; 8]).build(), "unknown type 13");
    gguf_refused(Gguf::default().pair(b"k", u32::MAX, &[0; 8]).build(), "unknown type 4294967295");
}

#[test]
fn huge_metadata_takes_no_memory_of_its_own() {
    let empty_strings = vec![0; 8 << 20];
    let n = empty_strings.len() as u64 / 8;
    let file = Gguf::default().array("k", common::TEXT, n, &empty_strings).build();
    let (checkpoint, most) = watched(|| Checkpoint::from_gguf_bytes(file).expect("is fine"));
    let (strings, most_later) = watched(|| checkpoint.metadata().strings("k").map(Iterator::count));
    assert_eq!(strings, Some(1 << 20));
    assert!(most < 10_000 && most_later < 10_000, "took {most} and {most_later} bytes");
    let one_too_many = Gguf::default().array("k", common::TEXT, n + 100, &empty_strings).build();
    gguf_refused(one_too_many, "it ends within \"k\"");
}

#[test]
fn names_that_stand_twice_are_refused() {
    let keys = Gguf::default().u32("a", 1).u32("b", 2).u16("a", 3).build();
    gguf_refused(keys, "metadata key \"a\" stands in it twice");
    let names = Gguf::default().tensor(b"w", &[8], 0, 0).tensor(b"w", &[8], 0, 32).data(64).build();
    gguf_refused(names, "tensor \"w\" stands in this model twice");
}

#[test]
fn names_that_are_no_names_are_refused() {
    for name in [&b"a\0b"[..], b"\xff\xfe", b"a\x1b[31mred", b"line\nbreak"] {
        gguf_refused(
            Gguf::default().tensor(name, &[8], 0, 0).data(64).build(),
            "holds bytes that are no text",
        );
        gguf_refused(Gguf::default().pair(name, 0, &[1]).build(), "holds bytes that are no text");
    }
    gguf_refused(Gguf::default().tensor(b"", &[8], 0, 0).data(64).build(), "a tensor name has 0 bytes");
    let long = vec![b'x'; 1 << 20];
    gguf_refused(Gguf::default().tensor(&long, &[8], 0, 0).data(64).build(), "tensor name has 1048576 bytes");
    gguf_refused(Gguf::default().pair(&long, 0, &[1]).build(), "metadata key has 1048576 bytes");
}

#[test]
fn alignments_that_are_none_are_refused() {
    let aligned = |alignment| {
        Gguf::default().u32("general.alignment", alignment).tensor(b"w", &[8], 0, 0).data(64).build()
    };
    for wrong in [0, 3, 33, u32::MAX] {
        gguf_refused(aligned(wrong), "no power of two");
    }
    gguf_refused(aligned(1 << 31), "ends before its tensor data begins");
    let text = Gguf::default().pair(b"general.alignment", common::TEXT, &text(b"32"));
    gguf_refused(text.build(), "general.alignment is no whole number");
    let wide = Gguf::default().pair(b"general.alignment", common::U64, &(1u64 << 63).to_le_bytes());
    gguf_refused(wide.tensor(b"w", &[8], 0, 0).data(64).build(), "ends before its tensor data begins");
    assert!(Checkpoint::from_gguf_bytes(aligned(8)).is_ok());
}

#[test]
fn other_versions_and_types_are_named() {
    let version = |v: u32| Gguf { version: Some(v), ..Gguf::default() }.build();
    gguf_refused(version(1), "GGUF version 1; convert the model again");
    gguf_refused(version(0), "GGUF version 0");
    gguf_refused(version(4), "GGUF version 4; versions 2 and 3 are supported");
    gguf_refused(version(3u32.swap_bytes()), "big-endian");
    let typed = |kind| Gguf::default().tensor(b"blk.0.w", &[256], kind, 0).data(1024).build();
    gguf_refused(typed(23), "tensor \"blk.0.w\" is stored as iq4_xs, which is not supported");
    gguf_refused(typed(26), "stored as i32");
    gguf_refused(typed(4000), "stored as type number 4000");
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let file = Gguf::default()
        .u32("general.alignment", 32)
        .array("tokens", common::TEXT, 2, &[text(b"a"), text(b"bc")].concat())
        .tensor(b"w", &[8], 0, 0)
        .data(32)
        .build();
    for len in 0..file.len() {
        refusal(|| Checkpoint::from_gguf_bytes(file[..len].to_vec()));
    }
    assert!(Checkpoint::from_gguf_bytes(file).is_ok());
    let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let file = safetensors(header, 8);
    for len in 0..file.len() {
        refusal(|| Checkpoint::from_safetensors_bytes(file[..len].to_vec()));
    }
    assert!(Checkpoint::from_safetensors_bytes(file).is_ok());
}

#[test]
fn safetensors_headers_that_are_none_are_refused() {
    for length in [u64::MAX, 1 << 63, 1 << 40, 100_000_001, 1000] {
        let mut file = safetensors("{}", 8);
        file[..8].copy_from_slice(&length.to_le_bytes());
        safetensors_refused(file, &format!("its header is said to have {length} bytes"));
    }
    safetensors_refused(safetensors("", 8), "no JSON object");
    safetensors_refused(safetensors("[1]", 8), "no JSON object");
    safetensors_refused(safetensors("{\"a\":", 8), "its header is not understood");
    safetensors_refused(safetensors("{\"a\":1}", 8), "its header is not understood");
    safetensors_refused(safetensors("{\"a\":{\"dtype\":\"F32\"}}", 8), "missing field");
    safetensors_refused(safetensors("{}trailing", 0), "its header is not understood");
    for open in ["{\"a\":", "["] {
        let deep = format!("{{\"w\":{}", open.repeat(1_000_000));
        safetensors_refused(safetensors(&deep, 8), "its header is not understood");
        let hidden = format!("{{\"__metadata__\":{}", open.repeat(1_000_000));
        safetensors_refused(safetensors(&hidden, 8), "its header is not understood");
    }
}

#[test]
fn safetensors_out_of_place_are_refused() {
    let one = |tensor: &str| safetensors(&format!("{{\"w\":{tensor}}}"), 8);
    let offsets = |a: &str| one(&format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":[{a}]}}"#));
    assert!(Checkpoint::from_safetensors_bytes(offsets("0,8")).is_ok());
    safetensors_refused(offsets("8,0"), "lies at 8..0");
    safetensors_refused(offsets("0,16"), "lies at 0..16, the data has 8 bytes");
    safetensors_refused(offsets("18446744073709551608,18446744073709551615"), "the data has 8 bytes");
    safetensors_refused(offsets("0,4"), "cannot have 4 bytes");
    safetensors_refused(offsets("-8,0"), "its header is not understood");
    for shape in ["[4611686018427387904,4]", "[18446744073709551615]", "[3]", "[0]", "[]"] {
        let tensor = format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[0,8]}}"#);
        safetensors_refused(one(&tensor), "cannot have 8 bytes");
    }
    let two = |a: &str, b: &str, len| {
        let tensor = |at: &str| format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":[{at}]}}"#);
        safetensors(&format!(r#"{{"a":{},"b":{}}}"#, tensor(a), tensor(b)), len)
    };
    assert!(Checkpoint::from_safetensors_bytes(two("4,8", "0,4", 8)).is_ok());
    safetensors_refused(two("0,4", "2,6", 8), "overlaps the one before it");
    safetensors_refused(two("0,4", "0,4", 4), "overlaps the one before it");
    safetensors_refused(two("0,4", "6,10", 10), "leaves a hole to the one before it");
    safetensors_refused(two("0,4", "4,8", 9), "its tensors end at");
    safetensors_refused(safetensors("{}", 8), "its tensors end at");
}

#[test]
fn safetensors_names_that_are_no_names_are_refused() {
    let tensor =
        |name: &str, at: &str| format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":[{at}]}}"#);
    let twice = format!("{{{},{}}}", tensor("w", "0,4"), tensor("w", "4,8"));
    safetensors_refused(safetensors(&twice, 8), "\"w\" stands in this model twice");
    for name in [String::new(), "x".repeat(100_000), r"a\u0000b".into(), r"\u001b[31m".into()] {
        let file = safetensors(&format!("{{{}}}", tensor(&name, "0,4")), 4);
        safetensors_refused(file, "is empty, too long or no text");
    }
}

#[test]
fn an_index_that_leaves_its_folder_is_refused() {
    let outside = tempfile::tempdir().expect("a folder");
    let folder = outside.path().join("model");
    fs::create_dir(&folder).expect("created");
    let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let secret = outside.path().join("secret.safetensors");
    fs::write(&secret, safetensors(header, 8)).expect("written");
    let absolute = secret.to_str().expect("UTF-8").replace('\\', "\\\\");
    let index = folder.join("model.safetensors.index.json");
    for file in ["../secret.safetensors", "..", ".", "", "a/../../secret.safetensors", "..\\\\secret", "c:x"]
    {
        fs::write(&index, format!(r#"{{"weight_map":{{"w":"{file}"}}}}"#)).expect("written");
        let error = refusal(|| Checkpoint::open(&folder));
        assert!(error.contains("no plain file name"), "{file}: {error}");
    }
    fs::write(&index, format!(r#"{{"weight_map":{{"w":"{absolute}"}}}}"#)).expect("written");
    assert!(refusal(|| Checkpoint::open(&folder)).contains("no plain file name"));
    for (text, says) in [
        ("", "no index of tensors"),
        ("[]", "no index of tensors"),
        (r#"{"weight_map":{"w":1}}"#, "no index of tensors"),
        (r#"{"weight_map":{"w":"gone.safetensors"}}"#, "is missing"),
        (&"[".repeat(1 << 20), "no index of tensors"),
    ] {
        fs::write(&index, text).expect("written");
        let error = refusal(|| Checkpoint::open(&folder));
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn configs_that_are_too_deep_or_too_large_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    fs::write(folder.path().join("model.safetensors"), safetensors(header, 8)).expect("written");
    let config = folder.path().join("config.json");
    fs::write(&config, "[".repeat(1 << 20)).expect("written");
    assert!(refusal(|| Checkpoint::open(folder.path())).contains("config.json"));
    fs::write(&config, vec![b' '; 5 << 20]).expect("written");
    assert!(refusal(|| Checkpoint::open(folder.path())).contains("more than the 4194304 that are allowed"));
    fs::remove_file(&config).expect("removed");
    fs::create_dir(&config).expect("created");
    assert!(refusal(|| Checkpoint::open(folder.path())).contains("is not a file"));
}

#[test]
fn paths_to_no_file_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing.gguf");
    assert!(refusal(|| Checkpoint::open(&missing)).contains("missing.gguf"));
    let empty = folder.path().join("empty.gguf");
    fs::write(&empty, b"").expect("written");
    assert!(refusal(|| Checkpoint::open(&empty)).contains("is empty"));
    let inner = folder.path().join("folder.gguf");
    fs::create_dir(&inner).expect("created");
    assert!(refusal(|| Checkpoint::open(&inner)).contains("holds no .gguf"));
    let part = folder.path().join("m-00001-of-99999.gguf");
    fs::write(&part, Gguf::default().u16("split.count", 65535).build()).expect("written");
    assert!(refusal(|| Checkpoint::open(&part)).contains("is missing; it is part 2 of the 99999"));
    refusal(|| Checkpoint::open(Path::new("")));
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_waited_for() {
    assert!(refusal(|| Checkpoint::open(Path::new("/dev/zero"))).contains("neither a file nor a folder"));
}
