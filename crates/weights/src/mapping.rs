//! Files mapped into memory: the one place of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use exotherm_tensor::Storage;
use memmap2::Mmap;

use crate::WeightsError;

/// A file's bytes, mapped, or bytes handed over by a test or a fuzzer.
pub(crate) struct Mapping {
    path: PathBuf,
    bytes: Bytes,
}

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Mapping {
    /// Maps a regular file. Asks before opening, because opening a pipe would wait for its writer.
    pub(crate) fn open(path: &Path) -> Result<Mapping, WeightsError> {
        let kind = fs::metadata(path).map_err(|e| WeightsError::io("read", path, e))?;
        if !kind.is_file() {
            return Err(WeightsError::not_a_model(path, "is not a file"));
        }
        if kind.len() == 0 {
            return Err(WeightsError::not_a_model(path, "is empty; fetch it again"));
        }
        let file = File::open(path).map_err(|e| WeightsError::io("open", path, e))?;
        // SAFETY: the mapping is read-only and lives as long as `Mmap`. What no process can rule out is that
        // another one changes or truncates the file meanwhile: changed bytes are only ever read as plain
        // bytes whose lengths are checked again at each use, and reading pages cut off by a truncation ends
        // the process with SIGBUS. Downloads and our own writer put files in place by an atomic rename, so
        // a file in use is never rewritten by them.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| WeightsError::io("map", path, e))?;
        Ok(Mapping { path: path.to_path_buf(), bytes: Bytes::Mapped(map) })
    }

    pub(crate) fn owned(path: &Path, bytes: Vec<u8>) -> Mapping {
        Mapping { path: path.to_path_buf(), bytes: Bytes::Owned(bytes) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Storage for Mapping {
    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }

    fn give_back(&self, range: Range<usize>) {
        if let Bytes::Mapped(map) = &self.bytes {
            give_back_pages(map, range);
        }
    }
}

/// Lets go of the pages that lie wholly inside `range`; neighbours of the range may still be in use.
#[cfg(unix)]
fn give_back_pages(map: &Mmap, range: Range<usize>) {
    // SAFETY: `sysconf` only looks up a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Some(page) = usize::try_from(page).ok().filter(|&p| p > 0) else { return };
    let Some(start) = range.start.checked_next_multiple_of(page) else { return };
    let end = range.end.min(map.len()) / page * page;
    if start < end {
        // SAFETY: the mapping is shared, read-only and backed by a file, so a page that is let go is read
        // from the file again at its next use with the same bytes; references into it stay valid.
        let advised =
            unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        // Advice that the system does not take costs memory, nothing else.
        drop(advised);
    }
}

#[cfg(not(unix))]
fn give_back_pages(_map: &Mmap, _range: Range<usize>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_given_back_read_the_same_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bytes");
        let content: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        fs::write(&path, &content).expect("written");
        let mapping = Mapping::open(&path).expect("mapped");
        assert!(mapping.bytes() == content);
        for range in [0..1_000_000, 5..6, 4096..8192, 999_999..usize::MAX, usize::MAX - 1..usize::MAX] {
            mapping.give_back(range);
            assert!(mapping.bytes() == content);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_given_back_are_no_longer_resident() {
        let resident = || -> usize {
            let text = fs::read_to_string("/proc/self/statm").expect("statm");
            text.split(' ').nth(2).and_then(|pages| pages.parse().ok()).expect("shared pages")
        };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bytes");
        fs::write(&path, vec![1u8; 64 << 20]).expect("written");
        let mapping = Mapping::open(&path).expect("mapped");
        let before = resident();
        assert_eq!(mapping.bytes().iter().map(|&b| b as usize).sum::<usize>(), 64 << 20);
        let read = resident();
        mapping.give_back(0..64 << 20);
        let after = resident();
        assert!(read > before + 8_000, "reading made {before} into {read} pages");
        assert!(after < before + 4_000, "giving back left {after} pages of {read}");
    }
}
