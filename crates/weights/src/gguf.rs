//! Reads the head of a GGUF file, version 2 or 3, little-endian: key/value pairs and the list of tensors.
//! Every length is checked against the file before it is used, so nothing is allocated that the file has
//! not got.

use std::ops::Range;
use std::sync::Arc;

use exotherm_tensor::{DType, Storage};

use crate::WeightsError;
use crate::error::shown;
use crate::mapping::Mapping;
use crate::metadata::{Kind, Metadata};
use crate::table::{Element, Entry};

pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;
const MOST_DIMENSIONS: u32 = 4;
const LONGEST_KEY: u64 = 65535;
const LONGEST_NAME: u64 = 1024;
const SUPPORTED: &str =
    "f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k or q6_k weights";

/// Types that other engines know, by number, so that a refusal can name them.
const OTHER_TYPES: [(u32, &str); 22] = [
    (4, "q4_2"),
    (5, "q4_3"),
    (9, "q8_1"),
    (15, "q8_k"),
    (16, "iq2_xxs"),
    (17, "iq2_xs"),
    (18, "iq3_xxs"),
    (19, "iq1_s"),
    (20, "iq4_nl"),
    (21, "iq3_s"),
    (22, "iq2_s"),
    (23, "iq4_xs"),
    (24, "i8"),
    (25, "i16"),
    (26, "i32"),
    (27, "i64"),
    (28, "f64"),
    (29, "iq1_m"),
    (34, "tq1_0"),
    (35, "tq2_0"),
    (39, "mxfp4"),
    (40, "nvfp4"),
];

pub(crate) struct Header {
    pub metadata: Metadata,
    pub tensors: Vec<Entry>,
}

pub(crate) fn parse(mapping: &Arc<Mapping>, file: usize) -> Result<Header, WeightsError> {
    let mut cursor = Cursor { mapping, at: 0 };
    let (n_tensors, n_pairs) = preamble(&mut cursor)?;
    let mut metadata = Metadata::new(mapping.clone());
    for _ in 0..n_pairs {
        pair(&mut cursor, &mut metadata)?;
    }
    let alignment = alignment(&cursor, &metadata)?;
    let mut tensors = Vec::new();
    for _ in 0..n_tensors {
        tensors.push(tensor(&mut cursor, alignment, file)?);
    }
    let header_end = cursor.at;
    if n_tensors == 0 {
        return Ok(Header { metadata, tensors });
    }
    let data_start = usize::try_from(alignment)
        .ok()
        .and_then(|alignment| header_end.checked_next_multiple_of(alignment))
        .filter(|&start| start <= mapping.bytes().len())
        .ok_or_else(|| cursor.fault("it ends before its tensor data begins"))?;
    place(&cursor, &mut tensors, data_start)?;
    Ok(Header { metadata, tensors })
}

/// Magic, version and the two counts.
fn preamble(cursor: &mut Cursor) -> Result<(u64, u64), WeightsError> {
    let path = cursor.mapping.path();
    if cursor.take(4, "the magic")? != MAGIC {
        return Err(WeightsError::not_a_model(path, "does not start with \"GGUF\""));
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => {}
        1 => {
            let reason = "is of GGUF version 1; convert the model again with a current llama.cpp";
            return Err(WeightsError::not_a_model(path, reason));
        }
        v if v & 0xffff == 0 && v != 0 => {
            let reason = "is a big-endian GGUF file; fetch the little-endian one";
            return Err(WeightsError::not_a_model(path, reason));
        }
        v => {
            let reason = format!("is of GGUF version {v}; versions 2 and 3 are supported");
            return Err(WeightsError::not_a_model(path, reason));
        }
    }
    let n_tensors = cursor.u64("the number of tensors")?;
    let n_pairs = cursor.u64("the number of metadata pairs")?;
    // The shortest tensor entry has 32 bytes and the shortest pair 14. The loops would find the end of the
    // file anyway; this says plainly what is wrong.
    for (count, shortest, what) in [(n_tensors, 32, "tensors"), (n_pairs, 14, "metadata pairs")] {
        let needed = count.checked_mul(shortest);
        if needed.is_none_or(|needed| needed > cursor.rest().len() as u64) {
            return Err(cursor.fault(&format!("it claims {count} {what}, more than its size allows")));
        }
    }
    Ok((n_tensors, n_pairs))
}

fn pair(cursor: &mut Cursor, metadata: &mut Metadata) -> Result<(), WeightsError> {
    let key = cursor.name(LONGEST_KEY, "metadata key")?;
    let key_text = shown(key.as_bytes());
    let kind = cursor.kind(&key_text)?;
    let start = cursor.at;
    match kind {
        Kind::Text => cursor.text(&key_text).map(|_| ())?,
        Kind::Array => array(cursor, &key_text)?,
        fixed => cursor.take(fixed.width().unwrap_or(0) as u64, &key_text).map(|_| ())?,
    }
    match metadata.insert(key, kind, start..cursor.at) {
        true => Ok(()),
        false => Err(cursor.fault(&format!("metadata key {key_text:?} stands in it twice"))),
    }
}

/// Walks over an array, so that later reads find every element in place.
fn array(cursor: &mut Cursor, key: &str) -> Result<(), WeightsError> {
    let element = cursor.kind(key)?;
    let len = cursor.u64(key)?;
    match element {
        Kind::Array => {
            Err(cursor.fault(&format!("metadata {key:?} is an array of arrays, which nobody uses")))
        }
        Kind::Text => {
            for _ in 0..len {
                cursor.text(key)?;
            }
            Ok(())
        }
        fixed => {
            let size = len.checked_mul(fixed.width().unwrap_or(0) as u64);
            let size =
                size.ok_or_else(|| cursor.fault(&format!("metadata {key:?} is an array of {len} values")))?;
            cursor.take(size, key).map(|_| ())
        }
    }
}

fn alignment(cursor: &Cursor, metadata: &Metadata) -> Result<u64, WeightsError> {
    const KEY: &str = "general.alignment";
    if !metadata.contains(KEY) {
        return Ok(DEFAULT_ALIGNMENT);
    }
    match metadata.u64(KEY) {
        Some(alignment) if alignment.is_power_of_two() => Ok(alignment),
        Some(alignment) => Err(cursor.fault(&format!("{KEY} is {alignment}, no power of two"))),
        None => Err(cursor.fault(&format!("{KEY} is no whole number"))),
    }
}

/// One entry of the tensor list; its range is still relative to the tensor data.
fn tensor(cursor: &mut Cursor, alignment: u64, file: usize) -> Result<Entry, WeightsError> {
    let name = cursor.name(LONGEST_NAME, "tensor name")?;
    let fault = |cursor: &Cursor, what: &str| cursor.fault(&format!("tensor {name:?} {what}"));
    let n_dims = cursor.u32("a tensor's dimensions")?;
    if n_dims == 0 || n_dims > MOST_DIMENSIONS {
        return Err(fault(cursor, &format!("has {n_dims} dimensions, GGUF allows 1 to 4")));
    }
    let mut shape = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        let n = cursor.u64("a tensor's shape")?;
        match usize::try_from(n) {
            Ok(n) if n > 0 => shape.push(n),
            _ => return Err(fault(cursor, &format!("has a dimension of {n}"))),
        }
    }
    shape.reverse();
    let type_id = cursor.u32("a tensor's type")?;
    let dtype = DType::from_ggml_id(type_id).ok_or_else(|| WeightsError::UnsupportedType {
        path: cursor.mapping.path().to_path_buf(),
        name: name.to_string(),
        kind: OTHER_TYPES
            .iter()
            .find(|t| t.0 == type_id)
            .map_or_else(|| format!("type number {type_id}"), |t| t.1.to_string()),
        supported: SUPPORTED,
    })?;
    let offset = cursor.u64("a tensor's offset")?;
    if !offset.is_multiple_of(alignment) {
        return Err(fault(cursor, &format!("lies at {offset}, no multiple of the alignment {alignment}")));
    }
    let n_in = shape[shape.len() - 1];
    if !n_in.is_multiple_of(dtype.block_len()) {
        let block = dtype.block_len();
        return Err(fault(cursor, &format!("has rows of {n_in}, {dtype} stores blocks of {block}")));
    }
    let outer = &shape[..shape.len() - 1];
    let size =
        dtype.row_bytes(n_in).and_then(|row| outer.iter().try_fold(row, |size, &n| size.checked_mul(n)));
    let start = usize::try_from(offset).ok();
    let range = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
    let range = range
        .ok_or_else(|| fault(cursor, &format!("of shape {shape:?} at {offset} cannot be that large")))?;
    Ok(Entry { name: name.into(), element: Element::Weight(dtype), shape, file, range, taken: false })
}

/// Turns the ranges into ones of the file and checks that they lie in it and do not overlap.
fn place(cursor: &Cursor, tensors: &mut [Entry], data_start: usize) -> Result<(), WeightsError> {
    let have = cursor.mapping.bytes().len();
    for t in tensors.iter_mut() {
        let end = t.range.end.checked_add(data_start).filter(|&end| end <= have);
        let Some(end) = end else {
            let need = t.range.end - t.range.start;
            let reason = format!(
                "tensor {:?} needs {need} bytes at {} of the data, past the end of the file; fetch it again",
                t.name, t.range.start
            );
            return Err(cursor.fault(&reason));
        };
        t.range = t.range.start + data_start..end;
    }
    let mut in_order: Vec<&Entry> = tensors.iter().collect();
    in_order.sort_by_key(|t| t.range.start);
    for pair in in_order.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            let reason = format!("tensors {:?} and {:?} overlap", pair[0].name, pair[1].name);
            return Err(cursor.fault(&reason));
        }
    }
    Ok(())
}

struct Cursor<'a> {
    mapping: &'a Mapping,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn fault(&self, reason: &str) -> WeightsError {
        WeightsError::malformed(self.mapping.path(), reason)
    }

    fn rest(&self) -> &'a [u8] {
        self.mapping.bytes().get(self.at..).unwrap_or(&[])
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], WeightsError> {
        let taken = usize::try_from(n).ok().and_then(|n| self.rest().get(..n));
        let taken = taken.ok_or_else(|| {
            let left = self.rest().len();
            self.fault(&format!("it ends within {what:?} ({n} bytes at {}, {left} left)", self.at))
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], WeightsError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32, WeightsError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, WeightsError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length and as many bytes; gives their place.
    fn text(&mut self, what: &str) -> Result<Range<usize>, WeightsError> {
        let len = self.u64(what)?;
        self.take(len, what)?;
        Ok(self.at - len as usize..self.at)
    }

    fn kind(&mut self, key: &str) -> Result<Kind, WeightsError> {
        let id = self.u32(key)?;
        Kind::from_id(id).ok_or_else(|| self.fault(&format!("metadata {key:?} is of the unknown type {id}")))
    }

    /// A key or a tensor's name: short, UTF-8 and fit to be printed.
    fn name(&mut self, longest: u64, what: &str) -> Result<&'a str, WeightsError> {
        let range = self.text(what)?;
        let bytes = self.mapping.bytes().get(range).unwrap_or(&[]);
        if bytes.is_empty() || bytes.len() as u64 > longest {
            let length = bytes.len();
            let start = shown(bytes);
            let reason = format!("a {what} has {length} bytes, 1 to {longest} are allowed: \"{start}\"");
            return Err(self.fault(&reason));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.chars().any(char::is_control) => Ok(text),
            _ => Err(self.fault(&format!("a {what} holds bytes that are no text: \"{}\"", shown(bytes)))),
        }
    }
}
