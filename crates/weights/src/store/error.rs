//! What can go wrong between a model's name and its file. Every message names the thing and the way out.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

const GIVE_A_FILE: &str = "You can always give a file instead: `exotherm run path/to/model.gguf`, a folder with \
                           config.json and safetensors, or hf:org/repo[/file].";

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("no model '{arg}': {tried}.{hint}\nKnown names: {known}.\n{GIVE_A_FILE}")]
    Unknown { arg: String, tried: String, hint: String, known: String },

    #[error("could not fetch '{name}'. Tried:{}\n{GIVE_A_FILE}", Attempts(.attempts))]
    PullFailed { name: String, attempts: Vec<Attempt> },

    #[error(
        "'{arg}' is a {kind} and no known name, so there is nothing to pull: use it as it is, `exotherm run \
         {arg}`.{hint}\nKnown names: {known}"
    )]
    IsHere { arg: String, kind: &'static str, hint: String, known: String },

    #[error(
        "'{arg}' is not a hub address: {reason}. Write hf:org/repo, hf:org/repo/file.gguf or hf:org/repo@revision"
    )]
    HubAddress { arg: String, reason: String },

    #[error(
        "the hub refused {what} ({status}): it does not exist, or is private or gated. Check the spelling; for a \
         private or gated repository accept its terms on the hub and set HF_TOKEN to a token that may read it"
    )]
    HubDenied { what: String, status: u16 },

    #[error("the hub has no {what} (404). Check the spelling and the revision.{listing}")]
    HubNotFound { what: String, listing: String },

    #[error(
        "HF_HUB_OFFLINE is set and {what} is not complete in the cache at {}: {missing}. Unset it to download, or \
         give a path to a file",
        .cache.display()
    )]
    HubOffline { what: String, cache: PathBuf, missing: String },

    #[error("{repo} holds several models, name one of them:{}", Choices(.repo, .files))]
    HubAmbiguous { repo: String, files: Vec<String> },

    #[error(
        "{repo} holds no model that can be loaded: no .safetensors and no .gguf at its top level.{listing}"
    )]
    HubNoModel { repo: String, listing: String },

    #[error(
        "could not download {what} from the hub: {reason}. Try again (a partial download is resumed), or fetch it by \
         other means and give its path"
    )]
    Hub { what: String, reason: String },

    #[error(
        "HF_ENDPOINT is '{endpoint}', which is no URL of a hub. It must be like https://host or http://host:port; \
         unset it for the public hub"
    )]
    HubEndpoint { endpoint: String },

    #[error("the hub's answer for {what} is malformed: {reason}. Is HF_ENDPOINT the address of a hub?")]
    HubMalformed { what: String, reason: String },

    #[error("{what} is not what it should be: expected {expected}, found {found}. It was removed, try again")]
    Mismatch { what: String, expected: String, found: String },

    /// One source of a pull failed; `pull` collects these into `PullFailed`.
    #[error("{0}")]
    Source(String),

    #[error("cancelled")]
    Cancelled,

    #[error("no cache folder: neither EXOTHERM_HOME nor a home folder is set. Set EXOTHERM_HOME to a folder")]
    NoHome,

    #[error("cannot {action} {}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
}

/// One source that was tried and the reason it gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub source: String,
    pub reason: String,
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// An error and what caused it, on one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(below) = cause {
        text.push_str(&format!(": {below}"));
        cause = below.source();
    }
    text
}

struct Attempts<'a>(&'a [Attempt]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for attempt in self.0 {
            write!(f, "\n  - {}: {}", attempt.source, attempt.reason.replace('\n', "\n      "))?;
        }
        Ok(())
    }
}

struct Choices<'a>(&'a str, &'a [String]);

impl fmt::Display for Choices<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.iter().try_for_each(|file| write!(f, "\n  hf:{}/{file}", self.0))
    }
}
