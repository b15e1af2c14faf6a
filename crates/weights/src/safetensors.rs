//! Reads the header of a safetensors file and the index of a sharded checkpoint.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use exotherm_tensor::{DType, Storage};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::WeightsError;
use crate::error::shown;
use crate::mapping::Mapping;
use crate::table::{Element, Entry};

/// The limit that the format's own reader sets.
const LONGEST_HEADER: u64 = 100_000_000;
const LONGEST_NAME: usize = 1024;

/// Bits of an element; other types may stand in a file, but then nothing is known of their size.
const BITS: [(&str, u64); 22] = [
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("F8_E4M3", 8),
    ("F8_E5M2", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("U16", 16),
    ("I16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("U32", 32),
    ("I32", 32),
    ("F32", 32),
    ("U64", 64),
    ("I64", 64),
    ("F64", 64),
    ("C64", 64),
];

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's pairs in its order; a map would hide names that stand there twice.
struct RawHeader(Vec<(String, RawTensor)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut pairs = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        pairs.push((name, map.next_value()?));
                    }
                }
                Ok(RawHeader(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// True if the file's first bytes can be those of a safetensors file.
pub(crate) fn looks_like(first_bytes: &[u8]) -> bool {
    first_bytes.get(8) == Some(&b'{')
}

/// All tensors of a file, in the order of their data. The data must be covered from end to end, as the format
/// demands: hidden bytes between tensors are refused.
pub(crate) fn parse(mapping: &Mapping, file: usize) -> Result<Vec<Entry>, WeightsError> {
    let fault = |reason: String| WeightsError::malformed(mapping.path(), reason);
    let bytes = mapping.bytes();
    let Some(length) = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else {
        return Err(fault("it is shorter than the length of a safetensors header".into()));
    };
    if length > LONGEST_HEADER || length > bytes.len() as u64 - 8 {
        let size = bytes.len();
        return Err(fault(format!("its header is said to have {length} bytes, the file has {size}")));
    }
    let (header, data) = bytes[8..].split_at(length as usize);
    if header.first() != Some(&b'{') {
        return Err(fault("its header is no JSON object".into()));
    }
    let raw: RawHeader =
        serde_json::from_slice(header).map_err(|e| fault(format!("its header is not understood: {e}")))?;
    let data_start = bytes.len() - data.len();
    let mut entries = Vec::with_capacity(raw.0.len());
    for (name, tensor) in raw.0 {
        entries.push(entry(&name, tensor, data_start, data.len(), file).map_err(fault)?);
    }
    entries.sort_by_key(|e| (e.range.start, e.range.end));
    let mut covered = data_start;
    for e in &entries {
        if e.range.start != covered {
            let (at, what) =
                (e.range.start, if e.range.start < covered { "overlaps" } else { "leaves a hole to" });
            return Err(fault(format!("tensor {:?} at {at} {what} the one before it", e.name)));
        }
        covered = e.range.end;
    }
    if covered != bytes.len() {
        let (size, end) = (bytes.len(), covered);
        return Err(fault(format!("it has {size} bytes but its tensors end at {end}; fetch it again")));
    }
    Ok(entries)
}

fn entry(
    name: &str,
    raw: RawTensor,
    data_start: usize,
    data_len: usize,
    file: usize,
) -> Result<Entry, String> {
    if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
        return Err(format!("a tensor name is empty, too long or no text: \"{}\"", shown(name.as_bytes())));
    }
    let (start, end) = raw.data_offsets;
    if start > end || end > data_len as u64 {
        return Err(format!("tensor {name:?} lies at {start}..{end}, the data has {data_len} bytes"));
    }
    let shape: Option<Vec<usize>> = raw.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
    let shape = shape.ok_or_else(|| format!("tensor {name:?} has a dimension that cannot be addressed"))?;
    let bits = BITS.iter().find(|t| t.0 == raw.dtype).map(|t| t.1);
    if let Some(bits) = bits {
        let total = raw.shape.iter().try_fold(bits, |product, &n| product.checked_mul(n));
        if total.is_none_or(|total| !total.is_multiple_of(8) || total / 8 != end - start) {
            let size = end - start;
            let kind = shown(raw.dtype.as_bytes());
            return Err(format!("tensor {name:?} of {kind} {shape:?} cannot have {size} bytes"));
        }
    }
    let element = match raw.dtype.as_str() {
        "F32" => Element::Weight(DType::F32),
        "F16" => Element::Weight(DType::F16),
        "BF16" => Element::Weight(DType::BF16),
        other => Element::Other(shown(other.as_bytes()).into()),
    };
    let range = data_start + start as usize..data_start + end as usize;
    Ok(Entry { name: name.into(), element, shape, file, range, taken: false })
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: HashMap<String, String>,
}

/// A `model.safetensors.index.json`: which tensor lies in which file.
pub(crate) struct Index {
    pub weight_map: HashMap<String, String>,
    /// The distinct files, sorted by name.
    pub files: Vec<PathBuf>,
}

pub(crate) fn parse_index(path: &Path, text: &[u8]) -> Result<Index, WeightsError> {
    let raw: RawIndex = serde_json::from_slice(text)
        .map_err(|e| WeightsError::malformed(path, format!("it is no index of tensors: {e}")))?;
    let mut names: Vec<&str> = raw.weight_map.values().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        if !is_plain_file_name(name) {
            let reason = format!("it names {:?}, which is no plain file name", shown(name.as_bytes()));
            return Err(WeightsError::malformed(path, reason));
        }
        files.push(folder.join(name));
    }
    Ok(Index { weight_map: raw.weight_map, files })
}

/// A name that stays in its folder on every system.
fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | ':'))
}
