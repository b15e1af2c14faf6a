//! The Hugging Face hub, through the `hf-hub` crate and the cache that it shares with Python's tools.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, Metadata};
use hf_hub::api::{Progress as HubProgress, RepoInfo};
use hf_hub::{Cache, Repo, RepoType};

use super::error::StoreError;
use super::hub_address::{HubAddress, Selection, is_plain_path, select};
use super::progress::{Progress, Task};
use super::verified::{check_cancel, sha256_of};

const RETRY_WAITS: [Duration; 3] =
    [Duration::from_millis(300), Duration::from_millis(900), Duration::from_millis(2700)];
const POLL: Duration = Duration::from_millis(50);
/// A server that sends nothing for so long is given up.
const STALL_LIMIT: Duration = Duration::from_secs(120);

/// How the hub is reached, usually from the environment that Python's tools read as well.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// `None`: the public hub.
    pub endpoint: Option<String>,
    /// The folder with the `models--org--name` folders.
    pub cache: PathBuf,
    pub token: Option<String>,
    /// Use what is in the cache and never the network.
    pub offline: bool,
}

pub(crate) struct Hub<'a> {
    pub config: &'a HubConfig,
    pub cancel: &'a Arc<AtomicBool>,
    pub progress: &'a dyn Progress,
}

impl Hub<'_> {
    /// Everything that `address` needs is on disk afterwards; returns the file or folder to load.
    pub(crate) fn resolve(&self, address: &HubAddress) -> Result<PathBuf, StoreError> {
        if self.config.offline {
            return self.cached(address)?.map_err(|missing| StoreError::HubOffline {
                what: address.shown(),
                cache: self.config.cache.clone(),
                missing,
            });
        }
        let info = match self.info(address) {
            Ok(info) => info,
            Err(unreachable @ StoreError::Hub { .. }) => {
                let Ok(path) = self.cached(address)? else { return Err(unreachable) };
                self.progress
                    .note(&format!("{unreachable}.\nUsing the copy in the cache: {}", path.display()));
                return Ok(path);
            }
            Err(e) => return Err(e),
        };
        let listing: Vec<String> =
            info.siblings.into_iter().map(|file| file.rfilename).filter(|name| is_plain_path(name)).collect();
        let selection = select(address, &listing)?;
        // Every file is asked for by commit: a branch that moves meanwhile cannot mix two versions.
        let pinned = Repo::with_revision(address.repo.clone(), RepoType::Model, info.sha.clone());
        for file in &selection.files {
            self.fetch(&pinned, file)?;
        }
        // Only now is the branch known to the cache: an interrupted download never looks complete.
        let named = self.cache().repo(repo_of(address));
        named.create_ref(&info.sha).map_err(|e| StoreError::io("write in", &self.config.cache, e))?;
        Ok(path_of(named.pointer_path(&info.sha), &selection))
    }

    fn cache(&self) -> Cache {
        Cache::new(self.config.cache.clone())
    }

    fn api(&self, what: &str) -> Result<Api, StoreError> {
        let mut builder = ApiBuilder::from_cache(self.cache()).with_progress(false);
        if let Some(endpoint) = &self.config.endpoint {
            if !is_web_address(endpoint) {
                return Err(StoreError::HubEndpoint { endpoint: endpoint.clone() });
            }
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        builder.with_token(self.config.token.clone()).build().map_err(|e| failure(what, e))
    }

    /// What the cache has of `address`, or what it lacks.
    pub(crate) fn cached(&self, address: &HubAddress) -> Result<Result<PathBuf, String>, StoreError> {
        let cache = self.cache().repo(repo_of(address));
        let folder = repo_of(address).folder_name();
        let reference = self.config.cache.join(folder).join("refs").join(&address.revision);
        let commit = fs::read_to_string(reference).unwrap_or_else(|_| address.revision.clone());
        let snapshot = cache.pointer_path(commit.trim());
        if !is_commit(commit.trim()) || !snapshot.is_dir() {
            return Ok(Err("it was never downloaded".to_owned()));
        }
        let mut listing = Vec::new();
        list_files(&snapshot, "", &mut listing, 4);
        Ok(match select(address, &listing) {
            Ok(selection) => Ok(path_of(snapshot, &selection)),
            Err(ambiguous @ StoreError::HubAmbiguous { .. }) => return Err(ambiguous),
            Err(StoreError::HubNotFound { what, .. }) => Err(format!("no {what}")),
            Err(e) => Err(e.to_string()),
        })
    }

    fn info(&self, address: &HubAddress) -> Result<RepoInfo, StoreError> {
        let what = address.shown();
        let task = Task::begin(self.progress, &format!("asking the hub about {what}"), None);
        let api = self.api(&what)?;
        let repo = api.repo(repo_of(address));
        let info = self.supervise(&what, move |_| repo.info())?;
        drop(task);
        if !is_commit(&info.sha) {
            return Err(StoreError::HubMalformed { what, reason: "it names no commit".to_owned() });
        }
        Ok(info)
    }

    fn fetch(&self, repo: &Repo, file: &str) -> Result<(), StoreError> {
        let pointer = self.cache().repo(repo.clone()).pointer_path(repo.revision()).join(file);
        if pointer.exists() {
            return Ok(());
        }
        if pointer.is_symlink() {
            // Its bytes were cleared away; the client would stumble over the link that is left.
            fs::remove_file(&pointer).map_err(|e| StoreError::io("remove", &pointer, e))?;
        }
        let what = format!("{file} of {}", repo.url());
        let total = Arc::new(AtomicU64::new(0));
        let mut waits = RETRY_WAITS.into_iter();
        // The client's own retries append from the start after a failed resumption, so each try is a new call.
        let path = loop {
            let reason = match self.download(repo, file, &what, &total) {
                Err(StoreError::Hub { reason, .. }) => reason,
                settled => break settled?,
            };
            let Some(wait) = waits.next() else { return Err(StoreError::Hub { what, reason }) };
            if is_unusable_partial(&reason) {
                // A partial download that is already complete or too long cannot be continued.
                self.remove_partial_downloads(repo);
            }
            self.wait(wait)?;
        };
        self.verify(&path, &what, total.load(Ordering::Relaxed))
    }

    fn wait(&self, time: Duration) -> Result<(), StoreError> {
        let start = Instant::now();
        while start.elapsed() < time {
            check_cancel(self.cancel)?;
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn download(
        &self,
        repo: &Repo,
        file: &str,
        what: &str,
        total: &Arc<AtomicU64>,
    ) -> Result<PathBuf, StoreError> {
        let api = self.api(what)?;
        let (repo, file, total) = (repo.clone(), file.to_owned(), Arc::clone(total));
        let result = self.supervise(what, move |mut reporter| {
            reporter.total = total;
            let commit = repo.revision().to_owned();
            let files = api.repo(repo);
            check_headers(&api.metadata(&files.url(&file))?, &commit)?;
            files.download_with_progress(&file, reporter)
        });
        self.progress.finish();
        result
    }

    /// The client checks nothing, so length and (for large files, whose name in the cache is their sha256)
    /// content are checked here.
    fn verify(&self, pointer: &Path, what: &str, expected_bytes: u64) -> Result<(), StoreError> {
        let blob = fs::canonicalize(pointer).map_err(|e| StoreError::io("open", pointer, e))?;
        let found_bytes = fs::metadata(&blob).map_err(|e| StoreError::io("open", &blob, e))?.len();
        let mut wrong = None;
        if found_bytes != expected_bytes {
            wrong = Some((format!("{expected_bytes} bytes"), found_bytes.to_string()));
        } else if let Some(sha256) =
            blob.file_name().and_then(|name| name.to_str()).filter(|name| is_sha256(name))
        {
            let task = Task::begin(self.progress, &format!("checking {what}"), Some(found_bytes));
            let found = sha256_of(&blob, self.cancel, &task)?;
            wrong = (found != sha256).then(|| (format!("sha256 {sha256}"), found));
        }
        let Some((expected, found)) = wrong else { return Ok(()) };
        for path in [pointer, &blob] {
            fs::remove_file(path).map_err(|e| StoreError::io("remove", path, e))?;
        }
        Err(StoreError::Mismatch { what: what.to_owned(), expected, found })
    }

    fn remove_partial_downloads(&self, repo: &Repo) {
        let blobs = self.cache().repo(repo.clone()).blob_path("");
        let Ok(listing) = fs::read_dir(blobs) else { return };
        let partial = listing
            .flatten()
            .map(|entry| entry.path())
            .filter(|p| p.extension().is_some_and(|e| e == "part"));
        for path in partial {
            // The client locks what it is writing: a download of another process is left alone.
            let lock = File::create(path.with_extension("lock"));
            if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
                // Should it stay, the next attempt reports why.
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Runs one call of the client on its own thread. The client can neither be cancelled nor does it time
    /// out, and it panics on some malformed answers: from here it does the first two, and fails plainly.
    fn supervise<T: Send + 'static>(
        &self,
        what: &str,
        call: impl FnOnce(Reporter) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, events) = channel();
        let reporter = Reporter { sender, cancel: Arc::clone(self.cancel), total: Arc::default() };
        let worker = std::thread::spawn(move || call(reporter));
        let mut last_sign = Instant::now();
        // The client announces a file twice: when it decides to download it and when the bytes begin to come.
        let mut announced = None;
        loop {
            check_cancel(self.cancel)?;
            match events.recv_timeout(POLL) {
                Ok(event) => {
                    last_sign = Instant::now();
                    match event {
                        Event::Begin(name, bytes) => {
                            if announced.as_ref() != Some(&name) {
                                self.progress.begin(&format!("downloading {name}"), Some(bytes));
                                announced = Some(name);
                            }
                        }
                        Event::Advance(bytes) => self.progress.advance(bytes),
                    }
                }
                Err(RecvTimeoutError::Timeout) if last_sign.elapsed() > STALL_LIMIT => {
                    let reason = format!("nothing came for {} seconds", STALL_LIMIT.as_secs());
                    return Err(StoreError::Hub { what: what.to_owned(), reason });
                }
                Err(RecvTimeoutError::Timeout) if !worker.is_finished() => {}
                Err(_) => break,
            }
        }
        match worker.join() {
            Ok(result) => result.map_err(|e| failure(what, e)),
            Err(_) => {
                check_cancel(self.cancel)?;
                let reason = "the client cannot make sense of it".to_owned();
                Err(StoreError::HubMalformed { what: what.to_owned(), reason })
            }
        }
    }
}

enum Event {
    Begin(String, u64),
    Advance(u64),
}

struct Reporter {
    sender: Sender<Event>,
    cancel: Arc<AtomicBool>,
    total: Arc<AtomicU64>,
}

impl Reporter {
    fn send(&self, event: Event) {
        // Nobody listens once the caller has given up, or wants the thread to end.
        let is_heard = self.sender.send(event).is_ok();
        if !is_heard || self.cancel.load(Ordering::Relaxed) {
            // The client's callback cannot return an error. Unwinding without a panic message ends the
            // thread, closes the connection and frees the client's file lock.
            std::panic::resume_unwind(Box::new("cancelled"));
        }
    }
}

impl HubProgress for Reporter {
    fn init(&mut self, size: usize, filename: &str) {
        self.total.store(size as u64, Ordering::Relaxed);
        self.send(Event::Begin(filename.to_owned(), size as u64));
    }

    fn update(&mut self, size: usize) {
        self.send(Event::Advance(size as u64));
    }

    fn finish(&mut self) {}
}

/// The client makes paths of these two headers.
fn check_headers(metadata: &Metadata, commit: &str) -> Result<(), ApiError> {
    if metadata.commit_hash() != commit {
        return Err(ApiError::InvalidHeader("x-repo-commit"));
    }
    let is_plain = is_plain_path(metadata.etag()) && !metadata.etag().contains('/');
    if is_plain { Ok(()) } else { Err(ApiError::InvalidHeader("etag")) }
}

fn repo_of(address: &HubAddress) -> Repo {
    Repo::with_revision(address.repo.clone(), RepoType::Model, address.revision.clone())
}

fn path_of(snapshot: PathBuf, selection: &Selection) -> PathBuf {
    match &selection.primary {
        Some(file) => snapshot.join(file),
        None => snapshot,
    }
}

fn is_web_address(endpoint: &str) -> bool {
    let Ok(uri) = endpoint.parse::<ureq::http::Uri>() else { return false };
    matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
}

fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Files below `folder` whose bytes are there (a dangling link is not one), as paths with `/`.
fn list_files(folder: &Path, prefix: &str, found: &mut Vec<String>, depth: u32) {
    let Ok(listing) = fs::read_dir(folder) else { return };
    for entry in listing.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        match fs::metadata(entry.path()) {
            Ok(meta) if meta.is_file() => found.push(format!("{prefix}{name}")),
            Ok(meta) if meta.is_dir() && depth > 0 => {
                list_files(&entry.path(), &format!("{prefix}{name}/"), found, depth - 1);
            }
            _ => {}
        }
    }
}

fn is_unusable_partial(reason: &str) -> bool {
    reason == RANGE_REFUSED || reason == ApiError::InvalidResume.to_string()
}

const RANGE_REFUSED: &str = "the hub cannot continue the partial download";

fn failure(what: &str, error: ApiError) -> StoreError {
    let what = what.to_owned();
    match error {
        ApiError::RequestError(request) => match *request {
            ureq::Error::StatusCode(status @ (401 | 403)) => StoreError::HubDenied { what, status },
            ureq::Error::StatusCode(404) => StoreError::HubNotFound { what, listing: String::new() },
            ureq::Error::StatusCode(416) => StoreError::Hub { what, reason: RANGE_REFUSED.to_owned() },
            ureq::Error::StatusCode(status) => {
                StoreError::Hub { what, reason: format!("the hub answered {status}") }
            }
            other => StoreError::Hub { what, reason: other.to_string() },
        },
        ApiError::MissingHeader(_) | ApiError::InvalidHeader(_) | ApiError::ParseIntError(_) => {
            StoreError::HubMalformed { what, reason: error.to_string() }
        }
        other => StoreError::Hub { what, reason: other.to_string() },
    }
}
