//! GGUF files that are right: written by the `gguf` package, by hand and by our own writer.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::Gguf;
use exotherm_tensor::DType;
use exotherm_weights::{Checkpoint, Format, GgufWriter, NewValue, Value, WeightsError};
use proptest::collection::vec;
use proptest::prelude::*;

fn pattern(t: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((7 * i + 13 * t) % 251) as u8).collect()
}

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sample.gguf")
}

#[test]
fn every_kind_of_value_reads_as_the_gguf_package_wrote_it() {
    let checkpoint = Checkpoint::open(&sample()).expect("opened");
    let m = checkpoint.metadata();
    assert_eq!(m.str("general.architecture"), Some("sample"));
    assert_eq!(m.u64("kind.u8"), Some(200));
    assert_eq!(m.i64("kind.i8"), Some(-100));
    assert_eq!(m.u64("kind.u16"), Some(60_000));
    assert_eq!(m.i64("kind.i16"), Some(-30_000));
    assert_eq!(m.u64("kind.u32"), Some(4_000_000_000));
    assert_eq!(m.i64("kind.i32"), Some(-2_000_000_000));
    assert_eq!(m.u64("kind.u64"), Some((1 << 63) + 1));
    assert_eq!(m.i64("kind.u64"), None);
    assert_eq!(m.i64("kind.i64"), Some(-(1 << 62)));
    assert_eq!(m.u64("kind.i64"), None);
    assert_eq!(m.f32("kind.f32"), Some(1.5));
    assert_eq!(m.f32("kind.f64"), Some(0.1));
    assert_eq!(m.bool("kind.bool"), Some(true));
    assert_eq!(m.str("kind.string"), Some("naïve ☃"));
    assert_eq!(m.u64("kind.string"), None);
    assert_eq!(m.str("kind.u8"), None);
    assert_eq!(m.u64("no.such.key"), None);
    assert!(matches!(m.get("kind.i8"), Some(Value::Signed(-100))));
    assert_eq!(m.iter().count(), m.len());
}

#[test]
fn arrays_read_as_the_gguf_package_wrote_them() {
    let checkpoint = Checkpoint::open(&sample()).expect("opened");
    let m = checkpoint.metadata();
    let long = "x".repeat(100);
    let strings: Vec<&[u8]> = m.strings("array.strings").expect("strings").collect();
    assert_eq!(strings, [b"".as_slice(), b"a", "▁the".as_bytes(), long.as_bytes()]);
    assert_eq!(m.array("array.strings").and_then(|a| a.get(2)?.as_bytes()), Some("▁the".as_bytes()));
    assert_eq!(m.i32s("array.i32").expect("i32s").collect::<Vec<_>>(), [1, -2, 3]);
    assert_eq!(m.f32s("array.f32").expect("f32s").collect::<Vec<_>>(), [0.5, -0.25]);
    assert_eq!(m.i32s("array.u8").expect("i32s").collect::<Vec<_>>(), [1, 2, 255]);
    assert!(m.f32s("array.i32").is_none() && m.strings("array.i32").is_none());
    assert_eq!(m.array("array.bool").map(|a| a.len()), Some(3));
    assert_eq!(m.bool_at("array.bool", 1), Some(false));
    assert_eq!(m.bool_at("array.bool", 3), None);
}

#[test]
fn every_type_of_tensor_reads_as_the_gguf_package_wrote_it() {
    let mut checkpoint = Checkpoint::open(&sample()).expect("opened");
    assert_eq!(checkpoint.format(), Format::Gguf);
    assert_eq!(checkpoint.names().count(), DType::all().count());
    checkpoint.give_back();
    for (t, dtype) in DType::all().enumerate() {
        let name = format!("tensor.{dtype}");
        assert_eq!(checkpoint.info(&name), Some((dtype, &[2, 256][..])));
        let tensor = checkpoint.take(&name, &[2, 256]).expect("taken");
        assert_eq!(tensor.dtype(), dtype);
        assert_eq!(tensor.bytes(), pattern(t, tensor.bytes().len()), "{name}");
        tensor.give_back();
        assert_eq!(tensor.bytes(), pattern(t, tensor.bytes().len()), "{name}, read again");
    }
    checkpoint.finish(&|_| false).expect("all taken");
}

#[test]
fn our_writer_writes_what_our_reader_reads() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.gguf");
    let pieces: [&[u8]; 3] = [b"", b"\xff\xfe", b"abc"];
    let original = Checkpoint::open(&sample()).expect("opened");
    let mut writer = GgufWriter::new();
    writer.set("kind.u8", NewValue::Text(b"to be replaced"));
    writer.copy_metadata(original.metadata(), |key| key == "kind.f64");
    writer.set("new.texts", NewValue::Texts(&pieces));
    writer.set("new.i32s", NewValue::I32s(&[-1, 2]));
    writer.set("new.f32s", NewValue::F32s(&[0.5]));
    writer.set("new.u32s", NewValue::U32s(&[]));
    writer.set("new.u64", NewValue::U64(1 << 40));
    writer.set("new.i32", NewValue::I32(-5));
    writer.set("new.bool", NewValue::Bool(true));
    for dtype in DType::all() {
        writer.tensor(format!("w.{dtype}"), dtype, &[3, 1, 512]);
    }
    let mut sink = writer.create(&path, false).expect("created");
    for (t, dtype) in DType::all().enumerate() {
        let bytes = pattern(t, 3 * dtype.row_bytes(512).expect("whole blocks"));
        for chunk in bytes.chunks(1000) {
            sink.write(chunk).expect("written");
        }
    }
    assert!(!path.exists(), "the file appears only when it is complete");
    sink.finish().expect("finished");

    let mut copy = Checkpoint::open(&path).expect("opened");
    let m = copy.metadata();
    assert_eq!(m.len(), original.metadata().len() - 1 + 7);
    assert_eq!((m.u64("kind.u8"), m.f32("kind.f64")), (Some(200), None));
    assert_eq!(m.str("kind.string"), Some("naïve ☃"));
    assert_eq!(m.strings("new.texts").expect("strings").collect::<Vec<_>>(), pieces);
    assert_eq!(m.i32s("new.i32s").expect("i32s").collect::<Vec<_>>(), [-1, 2]);
    assert_eq!(m.array("new.u32s").map(|a| a.len()), Some(0));
    assert_eq!((m.u64("new.u64"), m.i64("new.i32")), (Some(1 << 40), Some(-5)));
    for (t, dtype) in DType::all().enumerate() {
        let tensor = copy.take(&format!("w.{dtype}"), &[3, 512]).expect("taken");
        assert_eq!(tensor.bytes(), pattern(t, tensor.bytes().len()), "{dtype}");
    }
    let left: Vec<_> = fs::read_dir(folder.path()).expect("listed").collect();
    assert_eq!(left.len(), 1, "no temporary file is left");
}

#[test]
fn an_unfinished_or_wrong_file_is_not_put_in_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.gguf");
    let declared = || {
        let mut writer = GgufWriter::new();
        writer.tensor("w", DType::F32, &[2, 2]);
        writer.create(&path, false).expect("created")
    };
    let mut sink = declared();
    sink.write(&[0; 8]).expect("half of it");
    assert!(sink.finish().expect_err("unfinished").to_string().contains("only 0 of its 1 tensors"));
    let mut sink = declared();
    assert!(sink.write(&[0; 17]).expect_err("too much").to_string().contains("more than its 16 bytes"));
    drop(sink);
    assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 0);

    fs::write(&path, b"precious").expect("written");
    let error = GgufWriter::new().create(&path, false).err().expect("refused");
    assert!(matches!(error, WeightsError::OutputExists(_)), "{error}");
    let mut twice = GgufWriter::new();
    twice.tensor("w", DType::F32, &[1]);
    twice.tensor("w", DType::F32, &[1]);
    assert!(twice.create(&path, true).is_err());
    assert_eq!(fs::read(&path).expect("read"), b"precious");
    GgufWriter::new().create(&path, true).expect("created").finish().expect("replaced");
    assert!(Checkpoint::open(&path).expect("opened").is_vocab_only());
}

#[test]
fn version_2_reads_like_version_3() {
    let file = Gguf::default().u32("a.b", 7).tensor(b"w", &[4, 2], 0, 0).data(32);
    for version in [2, 3] {
        let bytes = Gguf { version: Some(version), ..file.clone() }.build();
        let mut checkpoint = Checkpoint::from_gguf_bytes(bytes).expect("opened");
        assert_eq!(checkpoint.metadata().u64("a.b"), Some(7));
        let w = checkpoint.take("w", &[2, 4]).expect("taken");
        assert_eq!(w.bytes(), (0..32).collect::<Vec<u8>>());
    }
}

#[test]
fn take_and_finish_name_what_is_wrong() {
    let mut file = Gguf::default().data(0);
    for i in 0..8u64 {
        file = file.tensor(format!("t{i}").as_bytes(), &[2, 1, 4], 0, 32 * i);
    }
    let mut checkpoint = Checkpoint::from_gguf_bytes(file.data(256).build()).expect("opened");
    assert_eq!(checkpoint.tensor_bytes(), 256);
    let missing = checkpoint.take("nothing", &[4, 2]).err().expect("missing").to_string();
    assert!(missing.contains("no tensor \"nothing\""), "{missing}");
    assert!(checkpoint.try_take("nothing", &[4, 2]).expect("no error").is_none());
    let wrong = checkpoint.take("t1", &[2, 4]).err().expect("wrong").to_string();
    assert!(wrong.contains("\"t1\" has shape [4, 1, 2], the model needs [2, 4]"), "{wrong}");
    assert_eq!(checkpoint.take("t1", &[4, 2]).expect("taken").shape(), [4, 2]);
    assert_eq!(checkpoint.take("t1", &[1, 4, 2]).expect("taken again").shape(), [1, 4, 2]);
    let left = checkpoint.finish(&|name| name == "t0").expect_err("left over").to_string();
    assert!(left.contains("6 tensors") && left.contains("t2, t3, t4, t5, t6 and 1 more"), "{left}");
    checkpoint.finish(&|name| name != "t1").expect("all may stay");
}

/// Part `number` of `count`, holding one tensor.
fn part(number: u16, count: u16, total: u32) -> Vec<u8> {
    let file = Gguf::default().u16("split.no", number).u16("split.count", count);
    let file = file.pair(b"split.tensors.count", common::I32, &total.to_le_bytes());
    file.tensor(format!("w{number}").as_bytes(), &[8], 0, 0).data(32).build()
}

#[test]
fn any_part_of_a_split_file_opens_all_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |i: u32| folder.path().join(format!("m-{i:05}-of-00003.gguf"));
    for i in 0..3 {
        fs::write(path(i + 1), part(i as u16, 3, 3)).expect("written");
    }
    for opened in [path(1), path(2), path(3), folder.path().to_path_buf()] {
        let mut checkpoint = Checkpoint::open(&opened).expect("opened");
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["w0", "w1", "w2"]);
        assert_eq!(checkpoint.metadata().u64("split.no"), Some(0), "the metadata of the first part");
        assert_eq!(checkpoint.dir(), folder.path());
        for name in ["w0", "w1", "w2"] {
            checkpoint.take(name, &[8]).expect("taken");
        }
        checkpoint.finish(&|_| false).expect("all taken");
    }
}

#[test]
fn split_files_that_do_not_fit_together_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |i: u32| folder.path().join(format!("m-{i:05}-of-00002.gguf"));
    let error = |first: Vec<u8>, second: Option<Vec<u8>>| {
        fs::write(path(1), first).expect("written");
        match second {
            Some(second) => fs::write(path(2), second).expect("written"),
            None => drop(fs::remove_file(path(2))),
        }
        Checkpoint::open(&path(1)).err().expect("refused").to_string()
    };
    let missing = error(part(0, 2, 2), None);
    assert!(missing.contains("m-00002-of-00002.gguf: is missing; it is part 2 of the 2"), "{missing}");
    let total = error(part(0, 2, 9), Some(part(1, 2, 9)));
    assert!(total.contains("hold 2 tensors, split.tensors.count says 9"), "{total}");
    let differs = error(part(0, 2, 2), Some(part(1, 2, 3)));
    assert!(differs.contains("split.tensors.count differs"), "{differs}");
    let swapped = error(part(1, 2, 2), Some(part(0, 2, 2)));
    assert!(swapped.contains("split.no is 1, by its name it should be 0"), "{swapped}");
    let count = error(part(0, 3, 2), Some(part(1, 3, 2)));
    assert!(count.contains("split.count is 3, by its name it should be 2"), "{count}");
    let plain = Gguf::default().tensor(b"w0", &[8], 0, 0).data(32).build();
    let no_split = error(plain.clone(), Some(plain));
    assert!(no_split.contains("has no split.no"), "{no_split}");
    let same = Gguf::default().u16("split.no", 1).u16("split.count", 2).u32("split.tensors.count", 2);
    let twice = error(part(0, 2, 2), Some(same.tensor(b"w0", &[8], 0, 0).data(32).build()));
    assert!(twice.contains("\"w0\" stands in this model twice"), "{twice}");

    let renamed = folder.path().join("renamed.gguf");
    fs::write(&renamed, part(0, 2, 2)).expect("written");
    let error = Checkpoint::open(&renamed).err().expect("refused").to_string();
    assert!(error.contains("one of 2 parts; keep their names"), "{error}");
}

#[test]
fn a_folder_with_several_gguf_files_asks_for_one() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(sample(), folder.path().join("a.gguf")).expect("copied");
    fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": 3}"#).expect("written");
    let checkpoint = Checkpoint::open(folder.path()).expect("one file is fine");
    assert_eq!(checkpoint.generation_config().and_then(|c| c["eos_token_id"].as_u64()), Some(3));
    let checkpoint = Checkpoint::open(&folder.path().join("a.gguf")).expect("opened");
    assert!(checkpoint.generation_config().is_none(), "it may belong to another model of the folder");
    fs::copy(sample(), folder.path().join("b.gguf")).expect("copied");
    let error = Checkpoint::open(folder.path()).err().expect("refused").to_string();
    assert!(error.contains("several models, such as a.gguf and b.gguf"), "{error}");
}

#[test]
fn text_that_is_no_utf8_reads_as_bytes() {
    let file = Gguf::default().pair(b"k", common::TEXT, &common::text(b"a\xff"));
    let checkpoint = Checkpoint::from_gguf_bytes(file.build()).expect("opened");
    assert_eq!(checkpoint.metadata().bytes("k"), Some(&b"a\xff"[..]));
    assert_eq!(checkpoint.metadata().str("k"), None);
    assert!(checkpoint.is_vocab_only());
}

proptest! {
    /// Whatever bytes of a good file change, it is refused or reads to its last value and tensor.
    #[test]
    fn a_changed_file_is_refused_or_reads_whole(changes in vec((0usize..700, any::<u8>()), 1..6)) {
        let tokens = [common::text(b"a"), common::text(b"bc")].concat();
        let mut bytes = Gguf::default()
            .u32("general.alignment", 32)
            .array("tokens", common::TEXT, 2, &tokens)
            .array("scores", common::F32, 2, &[0; 8])
            .tensor(b"w", &[4, 2], 0, 0)
            .tensor(b"q", &[32], 8, 32)
            .data(96)
            .build();
        for (at, byte) in changes {
            let len = bytes.len();
            bytes[at % len] = byte;
        }
        if let Ok(mut checkpoint) = Checkpoint::from_gguf_bytes(bytes) {
            let m = checkpoint.metadata();
            prop_assert_eq!(m.iter().count(), m.len());
            for array in m.iter().filter_map(|(_, value)| value.as_array()) {
                prop_assert_eq!(array.iter().count(), array.len());
            }
            let listed: Vec<_> = checkpoint.names().map(str::to_string).collect();
            for name in listed {
                let shape = checkpoint.info(&name).expect("a weight").1.to_vec();
                prop_assert!(checkpoint.take(&name, &shape).is_ok());
            }
        }
    }
}
