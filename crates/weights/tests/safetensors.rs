//! Safetensors files and folders that are right, and sharded ones that do not fit together.

mod common;

use std::fs;
use std::path::Path;

use common::safetensors;
use exotherm_tensor::DType;
use exotherm_weights::{Checkpoint, Format};

const HEADER: &str = r#"{"__metadata__":{"format":"pt"},
  "b":{"dtype":"F16","shape":[2,3],"data_offsets":[16,28]},
  "a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
  "ids":{"dtype":"I64","shape":[1],"data_offsets":[32,40]},
  "c":{"dtype":"BF16","shape":[2,1],"data_offsets":[28,32]},
  "scalar":{"dtype":"F32","shape":[],"data_offsets":[40,44]},
  "new":{"dtype":"F1_NEW","shape":[9],"data_offsets":[44,45]},
  "none":{"dtype":"U8","shape":[0,4],"data_offsets":[45,45]}}   "#;

fn one(name: &str) -> Vec<u8> {
    safetensors(&format!(r#"{{"{name}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#), 8)
}

fn error(path: &Path) -> String {
    Checkpoint::open(path).err().expect("refused").to_string()
}

#[test]
fn tensors_are_listed_in_file_order_and_floats_can_be_taken() {
    let mut checkpoint = Checkpoint::from_safetensors_bytes(safetensors(HEADER, 45)).expect("opened");
    assert_eq!(checkpoint.format(), Format::Safetensors);
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c", "ids", "scalar", "new", "none"]);
    assert_eq!(checkpoint.info("b"), Some((DType::F16, &[2, 3][..])));
    assert_eq!(checkpoint.info("ids"), None);
    assert!(checkpoint.contains("ids") && checkpoint.metadata().is_empty());
    assert!(!checkpoint.is_vocab_only());
    assert_eq!(checkpoint.take("a", &[2, 2]).expect("taken").bytes(), (0..16).collect::<Vec<u8>>());
    assert_eq!(checkpoint.take("b", &[2, 3]).expect("taken").bytes(), (16..28).collect::<Vec<u8>>());
    assert_eq!(checkpoint.take("c", &[2]).expect("taken").bytes(), (28..32).collect::<Vec<u8>>());
    assert_eq!(checkpoint.take("scalar", &[1]).expect("taken").bytes(), (40..44).collect::<Vec<u8>>());
    let ids = checkpoint.take("ids", &[1]).err().expect("no weight").to_string();
    assert!(ids.contains("\"ids\" is stored as I64, which is not supported"), "{ids}");
    assert!(checkpoint.take("new", &[9]).is_err());
    assert!(checkpoint.take("none", &[0, 4]).is_err());
    checkpoint.finish(&|name| ["ids", "new", "none"].contains(&name)).expect("the rest was taken");
}

#[test]
fn a_folder_of_one_file_brings_its_configs_along() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    fs::write(&file, one("w")).expect("written");
    fs::write(folder.path().join("config.json"), r#"{"model_type":"x"}"#).expect("written");
    fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id":[1,2]}"#).expect("written");
    for path in [folder.path(), &file] {
        let checkpoint = Checkpoint::open(path).expect("opened");
        assert_eq!(checkpoint.dir(), folder.path());
        assert_eq!(checkpoint.config().and_then(|c| c["model_type"].as_str()), Some("x"));
        assert!(checkpoint.generation_config().is_some_and(|c| c["eos_token_id"][1] == 2));
    }
    fs::write(folder.path().join("config.json"), "{").expect("written");
    assert!(error(folder.path()).contains("config.json is damaged"), "{}", error(folder.path()));
}

#[test]
fn several_files_without_an_index_are_one_model() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["a", "b"] {
        fs::write(folder.path().join(format!("{name}.safetensors")), one(name)).expect("written");
    }
    let checkpoint = Checkpoint::open(folder.path()).expect("opened");
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    assert!(checkpoint.config().is_none());
    fs::write(folder.path().join("c.safetensors"), one("a")).expect("written");
    assert!(error(folder.path()).contains("\"a\" stands in this model twice"));
}

#[test]
fn shards_open_through_their_index_or_any_one_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let shard = |i: u32| folder.path().join(format!("model-{i:05}-of-00002.safetensors"));
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(shard(1), one("a")).expect("written");
    fs::write(shard(2), one("b")).expect("written");
    let map = r#"{"metadata":{"total_size":16},"weight_map":{
        "a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    for with_index in [false, true] {
        if with_index {
            fs::write(&index, map).expect("written");
        }
        for path in [folder.path(), &shard(1), &shard(2)] {
            let mut checkpoint = Checkpoint::open(path).expect("opened");
            assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
            checkpoint.take("a", &[2]).expect("taken");
            checkpoint.take("b", &[2]).expect("taken");
        }
    }
    fs::write(&index, map.replace("\"b\"", "\"elsewhere\"")).expect("written");
    let wrong = error(folder.path());
    assert!(wrong.contains("tensor \"elsewhere\" lies in model-00002-of-00002.safetensors, which is not so"));
    fs::remove_file(shard(2)).expect("removed");
    for path in [folder.path(), &shard(1)] {
        assert!(error(path).contains("is missing; it is part 2 of the 2 files"), "{}", error(path));
    }
    fs::remove_file(&index).expect("removed");
    assert!(error(folder.path()).contains("is missing; it is part 2"), "{}", error(folder.path()));
}

#[test]
fn folders_and_files_without_a_model_say_so() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(error(folder.path()).contains("holds no .gguf and no .safetensors file"));
    fs::write(folder.path().join("pytorch_model.bin"), "PK").expect("written");
    assert!(error(folder.path()).contains("convert them to safetensors"));
    assert!(error(&folder.path().join("pytorch_model.bin")).contains("is a PyTorch pickle"));
    let file = folder.path().join("x.gguf");
    for (content, says) in [
        ("", "is empty"),
        ("version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("ggjt....", "neither a GGUF nor"),
        ("tjgg....", "a format that GGUF has replaced"),
        ("hello, world", "neither a GGUF nor"),
    ] {
        fs::write(&file, content).expect("written");
        assert!(error(&file).contains(says), "{}", error(&file));
    }
    assert!(error(&folder.path().join("nothing")).contains("cannot open"));
}
