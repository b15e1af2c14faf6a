//! A checkpoint: the tensors of one or several mapped files under their names, handed out one by one and
//! counted off, so that nothing in it goes unused without a word.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use exotherm_tensor::{DType, Storage, Tensor};
use serde_json::Value;

use crate::error::shown;
use crate::locate::{Located, locate, read_config};
use crate::mapping::Mapping;
use crate::table::{Element, Entry, Table};
use crate::{Metadata, WeightsError, gguf, safetensors};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Gguf,
    Safetensors,
}

/// The name under which bytes in memory appear in messages.
const IN_MEMORY: &str = "(bytes in memory)";
/// How many names an error lists.
const MOST_NAMES: usize = 5;

pub struct Checkpoint {
    format: Format,
    /// What the user gave; errors about the checkpoint as a whole name it.
    path: PathBuf,
    dir: PathBuf,
    metadata: Metadata,
    config: Option<Value>,
    generation_config: Option<Value>,
    mappings: Vec<Arc<Mapping>>,
    table: Table,
}

impl Checkpoint {
    /// Opens a `.gguf` file, a `.safetensors` file, any part of a split of either, or a folder that holds one
    /// model. In a folder an index of shards comes first, then `model.safetensors`, then all safetensors
    /// files together, then GGUF. config.json and generation_config.json are read where they belong to the
    /// files beyond doubt: beside safetensors and in a folder given as a whole.
    pub fn open(path: &Path) -> Result<Checkpoint, WeightsError> {
        let located = locate(path)?;
        let mut checkpoint = Checkpoint::empty(located.format, path, &located.dir);
        if located.with_config {
            checkpoint.config = read_config(&located.dir, "config.json")?;
            checkpoint.generation_config = read_config(&located.dir, "generation_config.json")?;
        }
        match located.format {
            Format::Gguf => checkpoint.add_gguf_parts(&located.files)?,
            Format::Safetensors => {
                for file in &located.files {
                    checkpoint.add_safetensors(Mapping::open(file)?)?;
                }
                checkpoint.check_index(&located)?;
            }
        }
        Ok(checkpoint)
    }

    /// A single GGUF file in memory, for tests and fuzzing.
    pub fn from_gguf_bytes(bytes: Vec<u8>) -> Result<Checkpoint, WeightsError> {
        let path = Path::new(IN_MEMORY);
        let mut checkpoint = Checkpoint::empty(Format::Gguf, path, Path::new(""));
        checkpoint.add_gguf(Mapping::owned(path, bytes))?;
        checkpoint.check_parts(1)?;
        Ok(checkpoint)
    }

    /// A single safetensors file in memory, for tests and fuzzing.
    pub fn from_safetensors_bytes(bytes: Vec<u8>) -> Result<Checkpoint, WeightsError> {
        let path = Path::new(IN_MEMORY);
        let mut checkpoint = Checkpoint::empty(Format::Safetensors, path, Path::new(""));
        checkpoint.add_safetensors(Mapping::owned(path, bytes))?;
        Ok(checkpoint)
    }

    fn empty(format: Format, path: &Path, dir: &Path) -> Checkpoint {
        Checkpoint {
            format,
            path: path.to_path_buf(),
            dir: dir.to_path_buf(),
            metadata: Metadata::default(),
            config: None,
            generation_config: None,
            mappings: Vec::new(),
            table: Table::default(),
        }
    }

    fn add_gguf_parts(&mut self, files: &[PathBuf]) -> Result<(), WeightsError> {
        let mut expected = None;
        for (number, file) in files.iter().enumerate() {
            let metadata = self.add_gguf(Mapping::open(file)?)?;
            let part = metadata.as_ref().unwrap_or(&self.metadata);
            if files.len() > 1 {
                check_part(part, file, number, files.len())?;
                let total = part.u64("split.tensors.count");
                if expected.is_some_and(|first| first != total) {
                    let reason = "its split.tensors.count differs from that of the first part";
                    return Err(WeightsError::malformed(file, reason));
                }
                expected = Some(total);
            }
        }
        self.check_parts(files.len())
    }

    /// Adds a file's tensors. The first file's metadata is the checkpoint's; that of another is handed back.
    fn add_gguf(&mut self, mapping: Mapping) -> Result<Option<Metadata>, WeightsError> {
        let mapping = Arc::new(mapping);
        let header = gguf::parse(&mapping, self.mappings.len())?;
        self.add_file(mapping, header.tensors)?;
        if self.mappings.len() == 1 {
            self.metadata = header.metadata;
            return Ok(None);
        }
        Ok(Some(header.metadata))
    }

    fn add_safetensors(&mut self, mapping: Mapping) -> Result<(), WeightsError> {
        let entries = safetensors::parse(&mapping, self.mappings.len())?;
        self.add_file(Arc::new(mapping), entries)
    }

    fn add_file(&mut self, mapping: Arc<Mapping>, entries: Vec<Entry>) -> Result<(), WeightsError> {
        for entry in entries {
            if let Err(entry) = self.table.insert(entry) {
                let reason = format!("tensor {:?} stands in this model twice", entry.name);
                return Err(WeightsError::malformed(mapping.path(), reason));
            }
        }
        self.mappings.push(mapping);
        Ok(())
    }

    /// The parts of a split must be as many, and hold as many tensors, as the first says.
    fn check_parts(&self, n_files: usize) -> Result<(), WeightsError> {
        let says = self.metadata.u64("split.count").unwrap_or(1).max(1);
        if says != n_files as u64 {
            let reason = format!(
                "it says that it is one of {says} parts; keep their names as NAME-00001-of-{says:05}.gguf"
            );
            return Err(WeightsError::malformed(&self.path, reason));
        }
        let total = self.metadata.u64("split.tensors.count").filter(|_| n_files > 1);
        let have = self.table.entries().len();
        match total {
            Some(total) if total != have as u64 => {
                let reason = format!("its parts hold {have} tensors, split.tensors.count says {total}");
                Err(WeightsError::malformed(&self.path, reason))
            }
            _ => Ok(()),
        }
    }

    /// What the index of shards promises must be there.
    fn check_index(&self, located: &Located) -> Result<(), WeightsError> {
        let Some((index_path, weight_map)) = &located.index else { return Ok(()) };
        for (name, file) in weight_map {
            let found = self.table.get(name).map(|e| self.mappings[e.file].path());
            if found.and_then(Path::file_name).is_none_or(|found| found != file.as_str()) {
                let (name, file) = (shown(name.as_bytes()), shown(file.as_bytes()));
                let reason = format!("it says that tensor {name:?} lies in {file}, which is not so");
                return Err(WeightsError::malformed(index_path, reason));
            }
        }
        Ok(())
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// What was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder in which tokenizer.json and the like would lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All files of the checkpoint, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.mappings.iter().map(|m| m.path())
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// config.json, if there is one.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// The names of all tensors in the order of the files; among them those of types that no weight has.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.table.entries().iter().map(|e| &*e.name)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.table.get(name).is_some()
    }

    /// Type and shape, outermost dimension first; `None` also for a tensor of a type that cannot be taken.
    pub fn info(&self, name: &str) -> Option<(DType, &[usize])> {
        let entry = self.table.get(name)?;
        match entry.element {
            Element::Weight(dtype) => Some((dtype, &entry.shape)),
            Element::Other(_) => None,
        }
    }

    /// The tensor `name` under the shape `shape`, its bytes still in the mapped file, and counts it off as
    /// used. Dimensions of 1 do not matter: what is stored as [6, 1, 1, 8] may be taken as [6, 8]. A tensor
    /// may be taken more than once, as tied embeddings are; a copy costs nothing.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, WeightsError> {
        let missing = || WeightsError::MissingTensor { path: self.path.clone(), name: name.to_string() };
        let entry = self.table.get(name).ok_or_else(missing)?;
        let mapping = &self.mappings[entry.file];
        let path = || mapping.path().to_path_buf();
        let dtype = match &entry.element {
            Element::Weight(dtype) => *dtype,
            Element::Other(kind) => {
                let (name, kind, supported) =
                    (name.to_string(), kind.to_string(), "F32, F16 or BF16 weights");
                return Err(WeightsError::UnsupportedType { path: path(), name, kind, supported });
            }
        };
        if !squeezed(&entry.shape).eq(squeezed(shape)) {
            let (found, expected) = (entry.shape.clone(), shape.to_vec());
            return Err(WeightsError::WrongShape { path: path(), name: name.to_string(), found, expected });
        }
        let tensor = Tensor::new(dtype, shape, mapping.clone(), entry.range.start)
            .map_err(|source| WeightsError::Tensor { path: path(), name: name.to_string(), source })?;
        if let Some(entry) = self.table.get_mut(name) {
            entry.taken = true;
        }
        Ok(tensor)
    }

    /// Like `take`, but a tensor that is not there is no error.
    pub fn try_take(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>, WeightsError> {
        match self.contains(name) {
            true => self.take(name, shape).map(Some),
            false => Ok(None),
        }
    }

    /// An error that names them if tensors were never taken, other than those that `may_stay`.
    pub fn finish(&self, may_stay: &dyn Fn(&str) -> bool) -> Result<(), WeightsError> {
        let left = self.table.entries().iter().filter(|e| !e.taken && !may_stay(&e.name));
        let count = left.clone().count();
        if count == 0 {
            return Ok(());
        }
        let names = left.take(MOST_NAMES).map(|e| e.name.to_string()).collect();
        Err(WeightsError::Leftover { path: self.path.clone(), names, count })
    }

    /// Bytes of all tensors together.
    pub fn tensor_bytes(&self) -> u64 {
        self.table.entries().iter().map(|e| e.range.len() as u64).sum()
    }

    /// True for a GGUF file that carries a vocabulary and no weights.
    pub fn is_vocab_only(&self) -> bool {
        self.format == Format::Gguf && self.table.entries().is_empty()
    }

    /// Lets go of the memory that reading the files took; all of it stays readable.
    pub fn give_back(&self) {
        for mapping in &self.mappings {
            mapping.give_back(0..mapping.bytes().len());
        }
    }

    /// Bytes of a tensor without counting it off, whatever its type.
    pub(crate) fn raw(&self, entry: &Entry) -> &[u8] {
        self.mappings[entry.file].bytes().get(entry.range.clone()).unwrap_or(&[])
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        self.table.entries()
    }

    /// Lets go of the memory that reading a tensor took.
    pub(crate) fn give_back_tensor(&self, entry: &Entry) {
        self.mappings[entry.file].give_back(entry.range.clone());
    }
}

fn squeezed(shape: &[usize]) -> impl Iterator<Item = usize> {
    shape.iter().copied().filter(|&n| n != 1)
}

fn check_part(metadata: &Metadata, file: &Path, number: usize, count: usize) -> Result<(), WeightsError> {
    for (key, wanted) in [("split.no", number as u64), ("split.count", count as u64)] {
        match metadata.u64(key) {
            Some(found) if found == wanted => {}
            Some(found) => {
                let reason = format!("its {key} is {found}, by its name it should be {wanted}");
                return Err(WeightsError::malformed(file, reason));
            }
            None => {
                let reason = format!("it is named as one of {count} parts but has no {key}; rename it");
                return Err(WeightsError::malformed(file, reason));
            }
        }
    }
    Ok(())
}
