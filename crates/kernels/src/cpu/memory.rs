//! Memory that the lanes of a team share, and what one lane has for itself.
//!
//! All of it is zeroed by the system when it is first touched, so that what is never used costs no pages.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use super::kv::KvPool;
use crate::backend::BackendError;

/// Every piece of memory begins on a cache line.
const ALIGN: usize = 64;

/// Numbers for which any bits are a value and zero bits are zero.
pub(crate) trait Plain: Copy + Default + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}

/// Zeroed elements that several lanes read and write at once, each its own part.
pub(crate) struct Shared<T> {
    base: NonNull<u8>,
    layout: Layout,
    start: NonNull<T>,
    len: usize,
    elements: PhantomData<T>,
}

// SAFETY: the memory belongs to this value alone, and its elements are plain numbers; who reads and writes what at
// one time is the duty of the callers of `slice` and `slice_mut`.
unsafe impl<T: Plain> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Shared<T> {}

impl<T: Plain> Shared<T> {
    pub fn zeroed(len: usize, what: &'static str) -> Result<Shared<T>, BackendError> {
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(ALIGN));
        let bytes = bytes.ok_or(BackendError::Memory { what, bytes: usize::MAX })?;
        let refused = || BackendError::Memory { what, bytes };
        // A larger alignment would make the allocator clear the pages itself, and so touch them all: the start
        // is moved to a cache line by hand.
        let layout = Layout::from_size_align(bytes, align_of::<T>()).map_err(|_| refused())?;
        // SAFETY: the layout's size is not zero, ALIGN is part of it.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        // SAFETY: `align_offset` on bytes is less than ALIGN, by which the allocation is larger than `len`.
        let start = unsafe { base.add(base.align_offset(ALIGN)) }.cast();
        Ok(Shared { base, layout, start, len, elements: PhantomData })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The same, with the advice to hold it in large pages, where the system has them.
    pub fn on_large_pages(self) -> Shared<T> {
        #[cfg(unix)]
        super::region::advise_large_pages(self.base, self.layout.size());
        self
    }

    /// # Safety
    /// While the slice lives nobody writes these elements.
    pub unsafe fn slice(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies inside the allocation, whose elements are initialised (zero at first).
        unsafe { std::slice::from_raw_parts(self.start.add(range.start).as_ptr(), range.len()) }
    }

    /// # Safety
    /// While the slice lives nobody else reads or writes these elements.
    #[expect(clippy::mut_from_ref, reason = "lanes share the memory and write disjoint parts of it")]
    pub unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies inside the allocation, whose elements are initialised (zero at first).
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start).as_ptr(), range.len()) }
    }

    /// Copies one of the parts of `len` elements over another.
    ///
    /// # Safety
    /// Nobody else reads or writes any element at the same time.
    pub unsafe fn copy_part(&self, len: usize, from: usize, to: usize) {
        // SAFETY: the caller's promise.
        let elements = unsafe { self.slice_mut(0..self.len) };
        elements.copy_within(from * len..(from + 1) * len, to * len);
    }

    /// All elements, for an owner whom no lane can interfere with.
    pub fn as_slice(&mut self) -> &mut [T] {
        // SAFETY: `&mut self` excludes every other user.
        unsafe { self.slice_mut(0..self.len) }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// What the lanes share besides the weights.
pub(crate) struct Memory {
    /// One per slot of the program's plan.
    pub slots: Vec<Shared<f32>>,
    pub keys: Vec<KvPool>,
    pub values: Vec<KvPool>,
    pub recurrent: Vec<Shared<f32>>,
    /// The normed rows of the op that runs, if it wants them itself.
    pub normed: Shared<f32>,
    /// Its rows in words, of integers or of pairs.
    pub words: Shared<u32>,
    /// Its rows in groups of floats.
    pub interleaved: Shared<f32>,
    /// Whatever else the op that runs makes between its stages.
    pub work: Shared<f32>,
}

/// What one lane has for itself while it runs an op; each part is as large as the op that needs most of it.
pub(crate) struct LaneMemory {
    /// One normed row.
    pub normed: Shared<f32>,
    /// One row in words.
    pub row_words: Shared<u32>,
    /// Rows in words that were picked out of others.
    pub gathered: Shared<u32>,
    /// The same in groups of floats.
    pub gathered_floats: Shared<f32>,
    /// The products of whole panels of which a part is wanted.
    pub whole: Shared<f32>,
    /// The outputs of a few columns for all rows.
    pub tile: Shared<f32>,
    pub work: Shared<f32>,
    pub words: Shared<u32>,
}

/// How much scratch the ops of a program need at most, in elements.
#[derive(Clone, Copy, Default)]
pub(crate) struct ScratchSizes {
    pub shared_normed: usize,
    pub shared_words: usize,
    pub shared_interleaved: usize,
    pub shared_work: usize,
    pub normed: usize,
    pub row_words: usize,
    pub gathered: usize,
    pub gathered_floats: usize,
    pub whole: usize,
    pub tile: usize,
    pub work: usize,
    pub words: usize,
}

impl LaneMemory {
    pub fn zeroed(sizes: &ScratchSizes) -> Result<LaneMemory, BackendError> {
        let floats = |len| Shared::zeroed(len, "scratch");
        let words = |len| Shared::zeroed(len, "scratch");
        Ok(LaneMemory {
            normed: floats(sizes.normed)?,
            row_words: words(sizes.row_words)?,
            gathered: words(sizes.gathered)?,
            gathered_floats: floats(sizes.gathered_floats)?,
            whole: floats(sizes.whole)?,
            tile: floats(sizes.tile)?,
            work: floats(sizes.work)?,
            words: words(sizes.words)?,
        })
    }

    /// What `zeroed` takes for these sizes.
    pub fn bytes_of(sizes: &ScratchSizes) -> usize {
        let floats = [sizes.normed, sizes.gathered_floats, sizes.whole, sizes.tile, sizes.work];
        let words = [sizes.row_words, sizes.gathered, sizes.words];
        let elements = floats.iter().chain(&words).fold(0usize, |sum, &n| sum.saturating_add(n));
        elements.saturating_mul(size_of::<f32>())
    }

    pub fn bytes(&self) -> usize {
        let floats = [&self.normed, &self.gathered_floats, &self.whole, &self.tile, &self.work];
        let words = [&self.row_words, &self.gathered, &self.words];
        floats.iter().map(|s| s.bytes()).sum::<usize>() + words.iter().map(|s| s.bytes()).sum::<usize>()
    }
}
