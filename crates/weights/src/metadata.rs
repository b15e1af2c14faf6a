//! The key/value pairs of a GGUF file. Values stay where they lie in the mapped file: a vocabulary of a
//! quarter of a million strings costs no memory of our own, and its pages can be given back.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use exotherm_tensor::Storage;

use crate::mapping::Mapping;

/// The types of values, numbered as in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

const KINDS: [(Kind, usize); 13] = [
    (Kind::U8, 1),
    (Kind::I8, 1),
    (Kind::U16, 2),
    (Kind::I16, 2),
    (Kind::U32, 4),
    (Kind::I32, 4),
    (Kind::F32, 4),
    (Kind::Bool, 1),
    (Kind::Text, 0),
    (Kind::Array, 0),
    (Kind::U64, 8),
    (Kind::I64, 8),
    (Kind::F64, 8),
];

impl Kind {
    pub(crate) fn from_id(id: u32) -> Option<Kind> {
        KINDS.get(usize::try_from(id).ok()?).map(|k| k.0)
    }

    pub(crate) fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of one value; `None` for those of varying length.
    pub(crate) fn width(self) -> Option<usize> {
        Some(KINDS[self as usize].1).filter(|&width| width > 0)
    }

    /// Reads one value at the start of `bytes` and says how many bytes it took.
    fn read(self, bytes: &[u8]) -> Option<(Value<'_>, usize)> {
        let value = match self {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(first(bytes)?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(first(bytes)?).into()),
            Kind::U32 => Value::Unsigned(u32::from_le_bytes(first(bytes)?).into()),
            Kind::U64 => Value::Unsigned(u64::from_le_bytes(first(bytes)?)),
            Kind::I8 => Value::Signed(i8::from_le_bytes(first(bytes)?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(first(bytes)?).into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(first(bytes)?).into()),
            Kind::I64 => Value::Signed(i64::from_le_bytes(first(bytes)?)),
            Kind::F32 => Value::Float(f32::from_le_bytes(first(bytes)?).into()),
            Kind::F64 => Value::Float(f64::from_le_bytes(first(bytes)?)),
            Kind::Bool => Value::Bool(*bytes.first()? != 0),
            Kind::Text => {
                let len = usize::try_from(u64::from_le_bytes(first(bytes)?)).ok()?;
                let end = len.checked_add(8)?;
                return Some((Value::Text(bytes.get(8..end)?), end));
            }
            Kind::Array => {
                let element = Kind::from_id(u32::from_le_bytes(first(bytes)?))?;
                let len = usize::try_from(u64::from_le_bytes(first(bytes.get(4..)?)?)).ok()?;
                return Some((Value::Array(Array { kind: element, len, bytes: &bytes[12..] }), bytes.len()));
            }
        };
        Some((value, self.width()?))
    }
}

fn first<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

/// One value, as `Metadata::iter` hands it out.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// Text is bytes: vocabularies hold pieces that are no UTF-8.
    Text(&'a [u8]),
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Value::Unsigned(v) => Some(v),
            Value::Signed(v) => u64::try_from(v).ok(),
            _ => None,
        }
    }

    pub fn as_i64(self) -> Option<i64> {
        match self {
            Value::Unsigned(v) => i64::try_from(v).ok(),
            Value::Signed(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_f32(self) -> Option<f32> {
        match self {
            Value::Float(v) => Some(v as f32),
            _ => None,
        }
    }

    pub fn as_bool(self) -> Option<bool> {
        match self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_bytes(self) -> Option<&'a [u8]> {
        match self {
            Value::Text(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_array(self) -> Option<Array<'a>> {
        match self {
            Value::Array(v) => Some(v),
            _ => None,
        }
    }
}

/// An array in the file, checked when the file was opened.
#[derive(Clone, Copy, Debug)]
pub struct Array<'a> {
    kind: Kind,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    pub fn len(self) -> usize {
        self.len
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Value<'a>> + Clone {
        let mut rest = self.bytes;
        (0..self.len).map_while(move |_| {
            let (value, used) = self.kind.read(rest)?;
            rest = &rest[used..];
            Some(value)
        })
    }

    /// Element `i`, found at once where all elements are equally wide.
    pub fn get(self, i: usize) -> Option<Value<'a>> {
        if i >= self.len {
            return None;
        }
        match self.kind.width() {
            Some(width) => Some(self.kind.read(self.bytes.get(i.checked_mul(width)?..)?)?.0),
            None => self.iter().nth(i),
        }
    }

    /// All elements through `convert`, or nothing if one of them does not convert.
    fn all<T: 'a>(
        self,
        convert: impl Fn(Value<'a>) -> Option<T> + Clone + 'a,
    ) -> Option<impl Iterator<Item = T> + 'a> {
        let fits = self.iter().filter(|&v| convert(v).is_some()).count() == self.len;
        fits.then(|| self.iter().map_while(convert))
    }
}

struct Entry {
    key: Box<str>,
    kind: Kind,
    /// Where the value lies in the file, an array with its element type and length.
    range: Range<usize>,
}

/// The key/value pairs of a GGUF file; empty for safetensors. A getter gives `None` both for a key that is
/// not there and for a value of another type.
pub struct Metadata {
    mapping: Arc<Mapping>,
    entries: Vec<Entry>,
    by_key: HashMap<Box<str>, usize>,
}

impl Default for Metadata {
    fn default() -> Metadata {
        Metadata::new(Arc::new(Mapping::owned(Path::new(""), Vec::new())))
    }
}

impl Metadata {
    pub(crate) fn new(mapping: Arc<Mapping>) -> Metadata {
        Metadata { mapping, entries: Vec::new(), by_key: HashMap::new() }
    }

    /// Adds a pair whose value was checked to lie at `range`; false if the key is there already.
    pub(crate) fn insert(&mut self, key: &str, kind: Kind, range: Range<usize>) -> bool {
        if self.by_key.contains_key(key) {
            return false;
        }
        self.by_key.insert(key.into(), self.entries.len());
        self.entries.push(Entry { key: key.into(), kind, range });
        true
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn contains(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.value(&self.entries[*self.by_key.get(key)?])
    }

    /// All pairs in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.entries.iter().filter_map(|entry| Some((&*entry.key, self.value(entry)?)))
    }

    /// The pairs as they are written: key, type, bytes.
    pub(crate) fn raw(&self) -> impl Iterator<Item = (&str, Kind, &[u8])> {
        let bytes = self.mapping.bytes();
        self.entries.iter().filter_map(move |e| Some((&*e.key, e.kind, bytes.get(e.range.clone())?)))
    }

    fn value(&self, entry: &Entry) -> Option<Value<'_>> {
        Some(entry.kind.read(self.mapping.bytes().get(entry.range.clone())?)?.0)
    }

    /// An integer of any width that is not negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    pub fn i64(&self, key: &str) -> Option<i64> {
        self.get(key)?.as_i64()
    }

    pub fn f32(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f32()
    }

    pub fn bool(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    pub fn bytes(&self, key: &str) -> Option<&[u8]> {
        self.get(key)?.as_bytes()
    }

    /// A text value, if it is UTF-8.
    pub fn str(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.bytes(key)?).ok()
    }

    pub fn array(&self, key: &str) -> Option<Array<'_>> {
        self.get(key)?.as_array()
    }

    pub fn strings(&self, key: &str) -> Option<impl Iterator<Item = &[u8]>> {
        // The kind tells already that all elements are strings: no need to walk a whole vocabulary twice.
        let array = self.array(key).filter(|a| a.kind == Kind::Text)?;
        Some(array.iter().filter_map(Value::as_bytes))
    }

    pub fn f32s(&self, key: &str) -> Option<impl Iterator<Item = f32>> {
        self.array(key)?.all(Value::as_f32)
    }

    /// An array of integers of any width, all of which fit into an `i32`.
    pub fn i32s(&self, key: &str) -> Option<impl Iterator<Item = i32>> {
        self.array(key)?.all(|v| i32::try_from(v.as_i64()?).ok())
    }

    /// A flag given once for all layers or in an array with one for each.
    pub fn bool_at(&self, key: &str, layer: usize) -> Option<bool> {
        let flag = match self.get(key)? {
            Value::Array(array) => array.get(layer)?,
            scalar => scalar,
        };
        flag.as_bool()
    }
}
