//! Writing a file whose size and sha256 are known beforehand.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::error::StoreError;
use super::progress::Task;

const BUFFER_BYTES: usize = 256 * 1024;

/// Takes bytes from any reader into a file, and never more than promised: a source that would inflate
/// without end stops at the pinned size.
pub(crate) struct VerifiedFile<'a> {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    written: u64,
    expected_bytes: u64,
    cancel: &'a AtomicBool,
}

impl<'a> VerifiedFile<'a> {
    pub(crate) fn create(
        path: &Path,
        expected_bytes: u64,
        cancel: &'a AtomicBool,
    ) -> Result<Self, StoreError> {
        let file = File::create(path).map_err(|e| StoreError::io("create", path, e))?;
        Ok(Self { path: path.to_owned(), file, hasher: Sha256::new(), written: 0, expected_bytes, cancel })
    }

    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    pub(crate) fn append(
        &mut self,
        reader: &mut dyn Read,
        from: &str,
        task: &Task,
    ) -> Result<(), StoreError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            check_cancel(self.cancel)?;
            let read = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(StoreError::Source(format!("cannot read {from}: {e}"))),
            };
            self.written += read as u64;
            if self.written > self.expected_bytes {
                let expected = self.expected_bytes;
                return Err(StoreError::Source(format!(
                    "{from} is longer than the {expected} bytes it should be"
                )));
            }
            self.hasher.update(&buffer[..read]);
            self.file.write_all(&buffer[..read]).map_err(|e| StoreError::io("write", &self.path, e))?;
            task.advance(read as u64);
        }
    }

    /// The file is on disk and is the promised one.
    pub(crate) fn finish(self, sha256: &str) -> Result<PathBuf, StoreError> {
        if self.written != self.expected_bytes {
            let (found, expected) = (self.written, self.expected_bytes);
            return Err(StoreError::Source(format!("got {found} bytes where {expected} were expected")));
        }
        let found = hex(&self.hasher.finalize());
        if found != sha256 {
            return Err(StoreError::Source(format!("wrong content: its sha256 is {found}, not {sha256}")));
        }
        self.file.sync_all().map_err(|e| StoreError::io("write", &self.path, e))?;
        Ok(self.path)
    }
}

pub(crate) fn sha256_of(path: &Path, cancel: &AtomicBool, task: &Task) -> Result<String, StoreError> {
    let mut file = File::open(path).map_err(|e| StoreError::io("open", path, e))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        check_cancel(cancel)?;
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hasher.finalize())),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                task.advance(read as u64);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(StoreError::io("read", path, e)),
        }
    }
}

pub(crate) fn check_cancel(cancel: &AtomicBool) -> Result<(), StoreError> {
    if cancel.load(Ordering::Relaxed) { Err(StoreError::Cancelled) } else { Ok(()) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
