//! Finds the files that make up a checkpoint, from a path to one of them or to their folder.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Format, WeightsError, gguf, safetensors};

/// Larger than any real one, small enough that parsing one cannot hurt.
const LARGEST_CONFIG: u64 = 4 << 20;
const LARGEST_INDEX: u64 = 32 << 20;
const INDEX_NAME: &str = "model.safetensors.index.json";

pub(crate) struct Located {
    pub format: Format,
    pub files: Vec<PathBuf>,
    pub dir: PathBuf,
    /// Which tensor a sharded safetensors checkpoint says lies in which file.
    pub index: Option<(PathBuf, HashMap<String, String>)>,
    /// Whether config.json and generation_config.json of the folder belong to these files.
    pub with_config: bool,
}

pub(crate) fn locate(path: &Path) -> Result<Located, WeightsError> {
    let kind = fs::metadata(path).map_err(|e| WeightsError::io("open", path, e))?;
    if kind.is_dir() {
        return locate_in_folder(path);
    }
    let format = format_of(path)?;
    Ok(Located {
        format,
        files: parts_of(path)?,
        dir: path.parent().unwrap_or(Path::new("")).to_path_buf(),
        index: None,
        // A folder of GGUF files may hold many models; the config.json beside one may belong to another.
        with_config: format == Format::Safetensors,
    })
}

fn locate_in_folder(dir: &Path) -> Result<Located, WeightsError> {
    let found =
        |format, files| Ok(Located { format, files, dir: dir.to_path_buf(), index: None, with_config: true });
    let index_path = dir.join(INDEX_NAME);
    if index_path.exists() {
        let text = read_limited(&index_path, LARGEST_INDEX)?;
        let index = safetensors::parse_index(&index_path, &text)?;
        require_all(&index.files)?;
        let located = found(Format::Safetensors, index.files)?;
        return Ok(Located { index: Some((index_path, index.weight_map)), ..located });
    }
    let single = dir.join("model.safetensors");
    if single.exists() {
        return found(Format::Safetensors, vec![single]);
    }
    let (safetensors, ggufs, pickles) = list_folder(dir)?;
    if let Some(first) = safetensors.first() {
        if let Some(part) = PartName::parse(first) {
            require_all(&part.all(dir))?;
        }
        return found(Format::Safetensors, safetensors);
    }
    match ggufs.as_slice() {
        [] => {
            let hint = match pickles {
                true => "; its weights are PyTorch pickles, convert them to safetensors",
                false => "",
            };
            let reason = format!("holds no .gguf and no .safetensors file{hint}");
            Err(WeightsError::not_a_model(dir, reason))
        }
        [first, rest @ ..] => {
            let files = parts_of(first)?;
            match rest.iter().find(|other| !files.contains(other)) {
                None => found(Format::Gguf, files),
                Some(other) => {
                    let (one, two) = (file_name(first), file_name(other));
                    let reason =
                        format!("holds several models, such as {one} and {two}; give the path of one");
                    Err(WeightsError::not_a_model(dir, reason))
                }
            }
        }
    }
}

/// The safetensors files and the GGUF files of a folder, each sorted by name, and whether there are pickles.
fn list_folder(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>, bool), WeightsError> {
    let (mut safetensors, mut ggufs, mut pickles) = (Vec::new(), Vec::new(), false);
    for item in fs::read_dir(dir).map_err(|e| WeightsError::io("list", dir, e))? {
        let path = item.map_err(|e| WeightsError::io("list", dir, e))?.path();
        if file_name(&path).starts_with('.') || path.is_dir() {
            continue;
        }
        match path.extension().and_then(OsStr::to_str) {
            Some("safetensors") => safetensors.push(path),
            Some("gguf") => ggufs.push(path),
            Some("bin" | "pth" | "pt") => pickles = true,
            _ => {}
        }
    }
    safetensors.sort();
    ggufs.sort();
    Ok((safetensors, ggufs, pickles))
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or(OsStr::new("")).to_string_lossy()
}

/// Tells the format by the first bytes: files in a hub's cache have no telling names.
fn format_of(path: &Path) -> Result<Format, WeightsError> {
    let kind = fs::metadata(path).map_err(|e| WeightsError::io("open", path, e))?;
    if !kind.is_file() {
        return Err(WeightsError::not_a_model(path, "is neither a file nor a folder"));
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(|e| WeightsError::io("open", path, e))?;
    file.take(16).read_to_end(&mut head).map_err(|e| WeightsError::io("read", path, e))?;
    let reason = match head.as_slice() {
        [] => "is empty; fetch it again",
        head if head.starts_with(gguf::MAGIC) => return Ok(Format::Gguf),
        head if safetensors::looks_like(head) => return Ok(Format::Safetensors),
        head if head.starts_with(b"PK") => "is a PyTorch pickle; convert it to safetensors",
        head if head.starts_with(b"version https://") => "is a Git LFS pointer; fetch the file itself",
        head if [b"lmgg", b"tjgg", b"fmgg"].iter().any(|old| head.starts_with(*old)) => {
            "is of a format that GGUF has replaced; convert the model again"
        }
        _ if path.extension() == Some(OsStr::new("safetensors")) => return Ok(Format::Safetensors),
        _ => "is neither a GGUF nor a safetensors file",
    };
    Err(WeightsError::not_a_model(path, reason))
}

/// All parts of the set that a file belongs to by its name; the file itself if it is no part of one.
fn parts_of(path: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let Some(part) = PartName::parse(path) else { return Ok(vec![path.to_path_buf()]) };
    let all = part.all(path.parent().unwrap_or(Path::new("")));
    require_all(&all)?;
    Ok(all)
}

fn require_all(files: &[PathBuf]) -> Result<(), WeightsError> {
    match files.iter().position(|file| !file.exists()) {
        None => Ok(()),
        Some(missing) => {
            let (number, count) = (missing + 1, files.len());
            let reason = format!("is missing; it is part {number} of the {count} files of this model");
            Err(WeightsError::not_a_model(&files[missing], reason))
        }
    }
}

/// `stem-00002-of-00003.extension`, of which there must be more than one.
struct PartName {
    stem: String,
    count: u32,
    extension: String,
}

impl PartName {
    fn parse(path: &Path) -> Option<PartName> {
        let extension = path.extension()?.to_str()?;
        let name = path.file_stem()?.to_str()?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| match text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse::<u32>().ok(),
            false => None,
        };
        let (number, count) = (digits(number)?, digits(count)?);
        let is_part = count > 1 && (1..=count).contains(&number);
        is_part.then(|| PartName { stem: stem.into(), count, extension: extension.into() })
    }

    fn all(&self, dir: &Path) -> Vec<PathBuf> {
        let PartName { stem, count, extension } = self;
        (1..=*count).map(|i| dir.join(format!("{stem}-{i:05}-of-{count:05}.{extension}"))).collect()
    }
}

/// A JSON file of the folder, if it is there.
pub(crate) fn read_config(dir: &Path, name: &str) -> Result<Option<Value>, WeightsError> {
    let path = dir.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let text = read_limited(&path, LARGEST_CONFIG)?;
    let value = serde_json::from_slice(&text)
        .map_err(|e| WeightsError::malformed(&path, format!("it is not valid JSON: {e}")))?;
    Ok(Some(value))
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, WeightsError> {
    let kind = fs::metadata(path).map_err(|e| WeightsError::io("open", path, e))?;
    if !kind.is_file() {
        return Err(WeightsError::not_a_model(path, "is not a file"));
    }
    if kind.len() > limit {
        let reason = format!("has {} bytes, more than the {limit} that are allowed", kind.len());
        return Err(WeightsError::not_a_model(path, reason));
    }
    let mut text = Vec::new();
    let file = File::open(path).map_err(|e| WeightsError::io("open", path, e))?;
    file.take(limit).read_to_end(&mut text).map_err(|e| WeightsError::io("read", path, e))?;
    Ok(text)
}
