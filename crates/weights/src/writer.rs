//! Writes a GGUF file (version 3): everything is declared first, then the tensors' bytes are streamed in that
//! order into a temporary file beside the target, which takes the target's name only when it is complete.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use exotherm_tensor::DType;

use crate::gguf::{DEFAULT_ALIGNMENT, MAGIC};
use crate::metadata::Kind;
use crate::{Metadata, WeightsError};

const VERSION: u32 = 3;
const ALIGNMENT_KEY: &str = "general.alignment";

/// A metadata value to be written.
#[derive(Clone, Copy, Debug)]
pub enum NewValue<'a> {
    U32(u32),
    U64(u64),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(&'a [u8]),
    U32s(&'a [u32]),
    I32s(&'a [i32]),
    F32s(&'a [f32]),
    Texts(&'a [&'a [u8]]),
}

impl NewValue<'_> {
    fn encoded(self) -> (Kind, Vec<u8>) {
        match self {
            NewValue::U32(v) => (Kind::U32, v.to_le_bytes().to_vec()),
            NewValue::U64(v) => (Kind::U64, v.to_le_bytes().to_vec()),
            NewValue::I32(v) => (Kind::I32, v.to_le_bytes().to_vec()),
            NewValue::F32(v) => (Kind::F32, v.to_le_bytes().to_vec()),
            NewValue::Bool(v) => (Kind::Bool, vec![v.into()]),
            NewValue::Text(v) => (Kind::Text, text(v).collect()),
            NewValue::U32s(v) => array(Kind::U32, v.len(), v.iter().flat_map(|v| v.to_le_bytes())),
            NewValue::I32s(v) => array(Kind::I32, v.len(), v.iter().flat_map(|v| v.to_le_bytes())),
            NewValue::F32s(v) => array(Kind::F32, v.len(), v.iter().flat_map(|v| v.to_le_bytes())),
            NewValue::Texts(v) => array(Kind::Text, v.len(), v.iter().flat_map(|v| text(v))),
        }
    }
}

fn text(bytes: &[u8]) -> impl Iterator<Item = u8> {
    (bytes.len() as u64).to_le_bytes().into_iter().chain(bytes.iter().copied())
}

fn array(element: Kind, len: usize, content: impl Iterator<Item = u8>) -> (Kind, Vec<u8>) {
    let head = element.id().to_le_bytes().into_iter().chain((len as u64).to_le_bytes());
    (Kind::Array, head.chain(content).collect())
}

struct Pair<'a> {
    key: Cow<'a, str>,
    kind: Kind,
    value: Cow<'a, [u8]>,
}

struct Declared<'a> {
    name: Cow<'a, str>,
    dtype: DType,
    shape: Vec<usize>,
}

/// What a file will hold. `create` starts writing it.
#[derive(Default)]
pub struct GgufWriter<'a> {
    pairs: Vec<Pair<'a>>,
    tensors: Vec<Declared<'a>>,
}

impl<'a> GgufWriter<'a> {
    pub fn new() -> GgufWriter<'a> {
        GgufWriter::default()
    }

    /// Sets a pair; one of the same key is replaced in its place.
    pub fn set(&mut self, key: impl Into<Cow<'a, str>>, value: NewValue<'_>) {
        let (kind, value) = value.encoded();
        self.put(Pair { key: key.into(), kind, value: value.into() });
    }

    /// Takes over the pairs of another file but for those of which `leave_out` says so. Nothing is copied.
    pub fn copy_metadata(&mut self, from: &'a Metadata, leave_out: impl Fn(&str) -> bool) {
        for (key, kind, value) in from.raw().filter(|pair| !leave_out(pair.0)) {
            self.put(Pair { key: key.into(), kind, value: value.into() });
        }
    }

    fn put(&mut self, pair: Pair<'a>) {
        match self.pairs.iter_mut().find(|p| p.key == pair.key) {
            Some(old) => *old = pair,
            None => self.pairs.push(pair),
        }
    }

    /// Declares the next tensor, outermost dimension first.
    pub fn tensor(&mut self, name: impl Into<Cow<'a, str>>, dtype: DType, shape: &[usize]) {
        self.tensors.push(Declared { name: name.into(), dtype, shape: shape.to_vec() });
    }

    /// Writes the head of the file. The tensors' bytes follow through the sink. A file that is there already
    /// is replaced only if `force` is set, and only when the new one is complete.
    pub fn create(self, path: &Path, force: bool) -> Result<GgufSink, WeightsError> {
        if !force && path.exists() {
            return Err(WeightsError::OutputExists(path.to_path_buf()));
        }
        let alignment = self.alignment(path)?;
        let sizes = self.sizes(path)?;
        let (temporary, file) = open_temporary(path)?;
        let mut sink = GgufSink {
            path: path.to_path_buf(),
            temporary,
            out: BufWriter::with_capacity(1 << 20, file),
            position: 0,
            alignment,
            sizes,
            current: 0,
            written: 0,
        };
        let head = self.write_head(&mut sink);
        head.and_then(|()| sink.pad()).map_err(|e| WeightsError::io("write", path, e))?;
        Ok(sink)
    }

    fn alignment(&self, path: &Path) -> Result<u64, WeightsError> {
        let Some(pair) = self.pairs.iter().find(|p| p.key == ALIGNMENT_KEY) else {
            return Ok(DEFAULT_ALIGNMENT);
        };
        let mut bytes = [0; 8];
        let width = pair.value.len().min(8);
        bytes[..width].copy_from_slice(&pair.value[..width]);
        let alignment = u64::from_le_bytes(bytes);
        if pair.kind.width().is_none() || !alignment.is_power_of_two() {
            return Err(refused(path, format!("{ALIGNMENT_KEY} is no power of two")));
        }
        Ok(alignment)
    }

    /// The sizes of all tensors; finds what a reader would refuse.
    fn sizes(&self, path: &Path) -> Result<Vec<u64>, WeightsError> {
        let mut names = HashSet::new();
        let mut sizes = Vec::with_capacity(self.tensors.len());
        for t in &self.tensors {
            if !names.insert(&*t.name) || t.name.is_empty() {
                return Err(refused(path, format!("tensor name {:?} is empty or declared twice", t.name)));
            }
            let size = t.shape.split_last().and_then(|(&n_in, outer)| {
                outer.iter().try_fold(t.dtype.row_bytes(n_in)?, |size, &n| size.checked_mul(n))
            });
            match size {
                Some(size) if size > 0 && t.shape.len() <= 4 => sizes.push(size as u64),
                _ => {
                    let (name, dtype, shape) = (&t.name, t.dtype, &t.shape);
                    return Err(refused(
                        path,
                        format!("tensor {name:?} cannot be {dtype} of shape {shape:?}"),
                    ));
                }
            }
        }
        Ok(sizes)
    }

    fn write_head(&self, sink: &mut GgufSink) -> io::Result<()> {
        sink.put(MAGIC)?;
        sink.put(&VERSION.to_le_bytes())?;
        sink.put(&(self.tensors.len() as u64).to_le_bytes())?;
        sink.put(&(self.pairs.len() as u64).to_le_bytes())?;
        for pair in &self.pairs {
            sink.put_text(&pair.key)?;
            sink.put(&pair.kind.id().to_le_bytes())?;
            sink.put(&pair.value)?;
        }
        let mut offset = 0u64;
        for (i, t) in self.tensors.iter().enumerate() {
            sink.put_text(&t.name)?;
            sink.put(&(t.shape.len() as u32).to_le_bytes())?;
            for &n in t.shape.iter().rev() {
                sink.put(&(n as u64).to_le_bytes())?;
            }
            sink.put(&t.dtype.ggml_id().to_le_bytes())?;
            sink.put(&offset.to_le_bytes())?;
            let end = offset
                .checked_add(sink.sizes[i])
                .and_then(|end| end.checked_next_multiple_of(sink.alignment));
            offset = end.ok_or_else(|| io::Error::other("the tensors are larger than a file can be"))?;
        }
        Ok(())
    }
}

fn refused(path: &Path, reason: String) -> WeightsError {
    WeightsError::Write { path: path.to_path_buf(), reason }
}

/// A new hidden file in the folder of `path`, so that renaming it stays on one file system.
fn open_temporary(path: &Path) -> Result<(PathBuf, File), WeightsError> {
    let Some(name) = path.file_name() else { return Err(refused(path, "it names no file".into())) };
    let mut last = None;
    for attempt in 0..100 {
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{attempt}.part", std::process::id()));
        let temporary = path.with_file_name(hidden);
        match File::create_new(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => last = Some(e),
            Err(e) => return Err(WeightsError::io("create", path, e)),
        }
    }
    Err(WeightsError::io("create", path, last.unwrap_or_else(|| io::Error::other("no free name"))))
}

/// Takes the tensors' bytes in the declared order. Dropped before `finish`, it leaves nothing behind.
pub struct GgufSink {
    path: PathBuf,
    temporary: PathBuf,
    out: BufWriter<File>,
    position: u64,
    alignment: u64,
    sizes: Vec<u64>,
    /// The tensor that is being written, and how much of it there is.
    current: usize,
    written: u64,
}

impl GgufSink {
    /// The next bytes of the current tensor, all of them or a part; a tensor that is complete is padded and
    /// the next one begins.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WeightsError> {
        let size = self.sizes.get(self.current).copied().unwrap_or(0);
        let written = self.written + bytes.len() as u64;
        if written > size {
            return Err(refused(
                &self.path,
                format!("tensor {} gets more than its {size} bytes", self.current),
            ));
        }
        let mut done = self.put(bytes);
        self.written = written;
        if written == size {
            done = done.and_then(|()| self.pad());
            self.current += 1;
            self.written = 0;
        }
        done.map_err(|e| WeightsError::io("write", &self.path, e))
    }

    /// Puts the complete file in its place.
    pub fn finish(mut self) -> Result<(), WeightsError> {
        if self.current != self.sizes.len() {
            let (current, all) = (self.current, self.sizes.len());
            return Err(refused(&self.path, format!("only {current} of its {all} tensors were given")));
        }
        let done = self.out.flush().and_then(|()| self.out.get_ref().sync_all());
        done.map_err(|e| WeightsError::io("write", &self.path, e))?;
        fs::rename(&self.temporary, &self.path).map_err(|e| WeightsError::io("put in place", &self.path, e))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn put_text(&mut self, text: &str) -> io::Result<()> {
        self.put(&(text.len() as u64).to_le_bytes())?;
        self.put(text.as_bytes())
    }

    fn pad(&mut self) -> io::Result<()> {
        let mut missing = self.position.next_multiple_of(self.alignment) - self.position;
        while missing > 0 {
            let step = missing.min(4096);
            self.put(&[0; 4096][..step as usize])?;
            missing -= step;
        }
        Ok(())
    }
}

impl Drop for GgufSink {
    fn drop(&mut self) {
        // After `finish` the file is gone from here; otherwise half a file is of no use to anyone, and failing
        // to remove it leaves nothing else to do.
        drop(fs::remove_file(&self.temporary));
    }
}
