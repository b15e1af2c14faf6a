//! GGUF and safetensors files written by hand, byte by byte, so that they can be as wrong as a test wants.
#![allow(dead_code)] // each test binary uses its own part

pub const U8: u32 = 0;
pub const U16: u32 = 2;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const TEXT: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;

/// A GGUF file in the making. The counts are those of what was added unless they are set.
#[derive(Clone, Default)]
pub struct Gguf {
    pub version: Option<u32>,
    pub n_tensors: Option<u64>,
    pub n_pairs: Option<u64>,
    pub pairs: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub data: Vec<u8>,
}

pub fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

impl Gguf {
    pub fn pair(mut self, key: &[u8], kind: u32, value: &[u8]) -> Gguf {
        self.pairs.push([&text(key), &kind.to_le_bytes()[..], value].concat());
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Gguf {
        self.pair(key.as_bytes(), U32, &value.to_le_bytes())
    }

    pub fn u16(self, key: &str, value: u16) -> Gguf {
        self.pair(key.as_bytes(), U16, &value.to_le_bytes())
    }

    pub fn array(self, key: &str, element: u32, len: u64, content: &[u8]) -> Gguf {
        let value = [&element.to_le_bytes()[..], &len.to_le_bytes(), content].concat();
        self.pair(key.as_bytes(), ARRAY, &value)
    }

    /// Dimensions in the order of the file: the row first.
    pub fn tensor(mut self, name: &[u8], dims: &[u64], kind: u32, offset: u64) -> Gguf {
        let mut entry = text(name);
        entry.extend((dims.len() as u32).to_le_bytes());
        entry.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
        entry.extend(kind.to_le_bytes());
        entry.extend(offset.to_le_bytes());
        self.tensors.push(entry);
        self
    }

    pub fn data(mut self, len: usize) -> Gguf {
        self.data = (0..len).map(|i| (i % 251) as u8).collect();
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.unwrap_or(3).to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_pairs.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        out.extend(self.pairs.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

pub fn safetensors(header: &str, data_len: usize) -> Vec<u8> {
    let mut out = text(header.as_bytes());
    out.extend((0..data_len).map(|i| (i % 251) as u8));
    out
}
