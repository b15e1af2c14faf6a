//! What several tests share: the golden cases, their logits on a backend, and edited copies of their files.
#![allow(dead_code)] // each test binary uses its own part

use std::path::{Path, PathBuf};

use exotherm_kernels::{BLOCK, Backend, Batch, KvType, Limits, Program};
use exotherm_models::{LoadOptions, Model, ModelError, load};
use exotherm_weights::Checkpoint;
use serde_json::{Map, Value, json};

pub struct Expected {
    pub tokens: Vec<u32>,
    pub positions: Vec<usize>,
    pub logits: Vec<Vec<f32>>,
}

pub fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

pub fn expected(case: &Path) -> Expected {
    let text = std::fs::read_to_string(case.join("expected.json")).expect("a case has expected.json");
    let json: serde_json::Value = serde_json::from_str(&text).expect("expected.json is JSON");
    let numbers = |v: &serde_json::Value| -> Vec<f64> {
        v.as_array().expect("an array").iter().map(|v| v.as_f64().expect("a number")).collect()
    };
    Expected {
        tokens: numbers(&json["tokens"]).iter().map(|&v| v as u32).collect(),
        positions: numbers(&json["positions"]).iter().map(|&v| v as usize).collect(),
        logits: json["logits"]
            .as_array()
            .expect("rows of logits")
            .iter()
            .map(|row| numbers(row).iter().map(|&v| v as f32).collect())
            .collect(),
    }
}

/// The logits at `positions` with the prompt cut into chunks of `chunk` tokens. Blocks are handed out backwards, so
/// that a block table that is not followed shows.
pub fn logits(backend: &dyn Backend, program: &Program, want: &Expected, chunk: usize) -> Vec<Vec<f32>> {
    let n = want.tokens.len();
    let blocks = n.div_ceil(BLOCK);
    let limits =
        Limits { rows: chunk, logit_rows: chunk, blocks: blocks + 1, slots: 2, kv_type: KvType::F32 };
    let mut executor = backend.compile(program, &limits).expect("the golden models fit");
    let table: Vec<u32> = (0..blocks as u32).rev().collect();
    let width = program.buffer(program.logits()).width;
    let mut all = Vec::new();
    for (i, tokens) in want.tokens.chunks(chunk).enumerate() {
        let start = i * chunk;
        let mut batch = Batch::default();
        batch.push_span(tokens, start as u32, &table, 1);
        let wanted: Vec<usize> =
            (0..tokens.len()).filter(|row| want.positions.contains(&(start + row))).collect();
        wanted.iter().for_each(|&row| batch.want_logits(row as u32));
        executor.run(&batch).expect("the batch is within the limits");
        all.extend(executor.logits().chunks(width).map(<[f32]>::to_vec));
    }
    all
}

pub fn golden(case: &str) -> PathBuf {
    golden_dir().join(case)
}

pub fn open(path: &Path) -> Result<Model, ModelError> {
    load(&mut Checkpoint::open(path)?, &LoadOptions::default())
}

/// The largest difference between the logits of the model at `path` and those expected.
pub fn distance(path: &Path, want: &Expected, backend: &dyn Backend) -> f32 {
    let program = open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).program;
    let have = logits(backend, &program, want, want.tokens.len());
    let pairs = have.iter().flatten().zip(want.logits.iter().flatten());
    pairs.map(|(a, b)| if a.is_finite() { (a - b).abs() } else { f32::INFINITY }).fold(0.0, f32::max)
}

/// A safetensors model that a test takes apart and puts together differently.
pub struct Edited {
    pub config: Value,
    pub tensors: Vec<(String, String, Vec<u64>, Vec<u8>)>,
}

impl Edited {
    pub fn of(case: &str) -> Edited {
        let config = std::fs::read_to_string(golden(case).join("config.json"));
        let config = config.map_or(Value::Null, |text| serde_json::from_str(&text).expect("JSON"));
        let bytes = std::fs::read(golden(case).join("model.safetensors")).expect("the model");
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..data]).expect("a header");
        let tensor = |(name, info): (String, Value)| {
            let numbers = |v: &Value| -> Vec<u64> {
                v.as_array().expect("a list").iter().map(|n| n.as_u64().expect("a number")).collect()
            };
            let at = numbers(&info["data_offsets"]);
            let bytes = bytes[data + at[0] as usize..data + at[1] as usize].to_vec();
            (name, info["dtype"].as_str().expect("a type").to_string(), numbers(&info["shape"]), bytes)
        };
        let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__").map(tensor).collect();
        Edited { config, tensors }
    }

    pub fn set(mut self, key: &str, value: Value) -> Edited {
        self.config[key] = value;
        self
    }

    pub fn without(mut self, keys: &[&str]) -> Edited {
        keys.iter().for_each(|key| drop(self.config.as_object_mut().expect("an object").remove(*key)));
        self
    }

    /// Makes a scalar of a tensor.
    pub fn scalar(mut self, name: &str) -> Edited {
        let tensor = self.tensors.iter_mut().find(|t| t.0 == name).expect("a tensor of that name");
        (tensor.2, tensor.3) = (Vec::new(), 1f32.to_le_bytes().to_vec());
        self
    }

    pub fn renamed(mut self, from: &str, to: &str) -> Edited {
        self.tensors.iter_mut().for_each(|t| t.0 = t.0.replace(from, to));
        self
    }

    pub fn write(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (name, dtype, shape, bytes) in &self.tensors {
            let offsets = [data.len(), data.len() + bytes.len()];
            let info = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
            header.insert(name.clone(), info);
            data.extend_from_slice(bytes);
        }
        let header = Value::Object(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
        std::fs::write(dir.path().join("model.safetensors"), file).expect("a small file");
        if !self.config.is_null() {
            std::fs::write(dir.path().join("config.json"), self.config.to_string()).expect("a small file");
        }
        dir
    }

    /// Why the model is refused.
    #[track_caller]
    pub fn refusal(&self) -> String {
        match open(self.write().path()) {
            Ok(_) => panic!("let pass with {}", self.config),
            Err(error) => error.to_string(),
        }
    }

    /// How far its logits are from those of a golden case.
    pub fn distance_from(&self, case: &str) -> f32 {
        let dir = self.write();
        distance(dir.path(), &expected(&golden(case)), &exotherm_kernels::reference::ReferenceBackend)
    }
}

#[track_caller]
pub fn assert_names(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}
