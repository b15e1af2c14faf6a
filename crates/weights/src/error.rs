//! What can go wrong with a checkpoint, in words that name the file, the thing and where there is one the way out.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use exotherm_tensor::TensorError;

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// The path leads to nothing that could be opened as a model.
    #[error("{}: {reason}", path.display())]
    NotAModel { path: PathBuf, reason: String },
    /// The file breaks the rules of its format.
    #[error("{} is damaged or no valid model file: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
    #[error(
        "{}: tensor {name:?} is stored as {kind}, which is not supported; use a file with {supported}",
        path.display()
    )]
    UnsupportedType { path: PathBuf, name: String, kind: String, supported: &'static str },
    #[error("{} has no tensor {name:?}, which the model needs", path.display())]
    MissingTensor { path: PathBuf, name: String },
    #[error("{}: tensor {name:?} has shape {found:?}, the model needs {expected:?}", path.display())]
    WrongShape { path: PathBuf, name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{}: tensor {name:?} is not sound", path.display())]
    Tensor { path: PathBuf, name: String, source: TensorError },
    #[error("{} holds {count} tensors that the model does not use: {}", path.display(), listed(names, *count))]
    Leftover { path: PathBuf, names: Vec<String>, count: usize },
    #[error("{} exists already; choose another name or pass --force", .0.display())]
    OutputExists(PathBuf),
    #[error("{} is the input itself; write to another file", .0.display())]
    OutputIsInput(PathBuf),
    #[error("{}: tensor {name:?} holds a value that is not finite, it cannot be quantized", path.display())]
    NotFinite { path: PathBuf, name: String },
    #[error("cannot write {}: {reason}", path.display())]
    Write { path: PathBuf, reason: String },
    #[error("cancelled")]
    Cancelled,
}

impl WeightsError {
    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> WeightsError {
        WeightsError::Malformed { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn not_a_model(path: &Path, reason: impl Into<String>) -> WeightsError {
        WeightsError::NotAModel { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> WeightsError {
        WeightsError::Io { action, path: path.to_path_buf(), source }
    }
}

fn listed(names: &[String], count: usize) -> String {
    let mut text = names.join(", ");
    if count > names.len() {
        let _ = write!(text, " and {} more", count - names.len());
    }
    text
}

/// Bytes of a file as they may be put into a message: at most 64 characters, control characters escaped.
pub(crate) fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 64;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MOST)]);
    let mut out: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().count() > MOST {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn a_cause_is_chained_and_not_told_by_the_error_itself() {
        let path = || PathBuf::from("a.gguf");
        let source = TensorError::Empty(vec![7, 0]);
        let errors = [
            WeightsError::io("open", &path(), io::Error::other("the cause")),
            WeightsError::Tensor { path: path(), name: "t".into(), source },
        ];
        for error in errors {
            let cause = error.source().expect("a cause").to_string();
            assert!(!error.to_string().contains(&cause) && error.to_string().contains("a.gguf"), "{error}");
        }
    }
}
