//! The table of tensors of a checkpoint, whatever format its files have.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use exotherm_tensor::DType;

/// What a tensor's elements are.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Element {
    Weight(DType),
    /// Something no weight is made of (safetensors carry integer and mask buffers along): listed, never taken.
    Other(Box<str>),
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: Arc<str>,
    pub element: Element,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Which of the checkpoint's files holds it, and where.
    pub file: usize,
    pub range: Range<usize>,
    pub taken: bool,
}

#[derive(Default)]
pub(crate) struct Table {
    entries: Vec<Entry>,
    by_name: HashMap<Arc<str>, usize>,
}

impl Table {
    /// Adds an entry, or hands it back if its name is there already.
    pub(crate) fn insert(&mut self, entry: Entry) -> Result<(), Entry> {
        if self.by_name.contains_key(&entry.name) {
            return Err(entry);
        }
        self.by_name.insert(entry.name.clone(), self.entries.len());
        self.entries.push(entry);
        Ok(())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&i| &self.entries[i])
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Entry> {
        self.by_name.get(name).map(|&i| &mut self.entries[i])
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}
