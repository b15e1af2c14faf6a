//! One piece of memory for all packed weights, straight from the system and in large pages where it has them: weights
//! are read from end to end for every token, and large pages spare the processor the look-up of small ones.

use std::ops::Range;

use crate::backend::BackendError;

#[cfg(unix)]
use std::ptr::NonNull;

/// Where large pages begin and how large they are.
#[cfg(unix)]
const LARGE: usize = 2 << 20;

/// Advises the system to hold memory of the caller's in large pages, where it has them: only what fills whole ones, because
/// the last would hold more than was asked for.
#[cfg(unix)]
pub(super) fn advise_large_pages(start: NonNull<u8>, len: usize) {
    #[cfg(target_os = "linux")]
    {
        let skipped = start.align_offset(LARGE).min(len);
        let whole = (len - skipped) / LARGE * LARGE;
        // SAFETY: the range lies in the caller's. Advice that is not taken costs speed, nothing else.
        unsafe { libc::madvise(start.add(skipped).as_ptr().cast(), whole, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, len);
}

/// Zeroed bytes that begin on a cache line, of which several lanes write disjoint parts.
#[cfg(unix)]
pub(crate) struct Region {
    base: NonNull<libc::c_void>,
    mapped: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to this value alone; who reads and writes what at one time is the duty of the callers of
// `slice` and `slice_mut`.
#[cfg(unix)]
unsafe impl Send for Region {}
// SAFETY: as above.
#[cfg(unix)]
unsafe impl Sync for Region {}

#[cfg(unix)]
impl Region {
    pub fn zeroed(len: usize, what: &'static str) -> Result<Region, BackendError> {
        let refused = || BackendError::Memory { what, bytes: len };
        // Larger by a large page, so that the start can be moved to where one begins. Pages that are never touched
        // cost nothing.
        let mapped = len.checked_add(LARGE).ok_or_else(refused)?;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of no file touches no memory there is.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), mapped, access, kind, -1, 0) };
        let base = NonNull::new(base).filter(|_| base != libc::MAP_FAILED).ok_or_else(refused)?;
        let start = base.cast::<u8>();
        // SAFETY: the offset is less than LARGE, by which the mapping is larger than `len`.
        let start = unsafe { start.add(start.align_offset(LARGE)) };
        advise_large_pages(start, len);
        Ok(Region { base, mapped, start, len })
    }

    /// # Safety
    /// While the slice lives nobody writes these bytes.
    pub unsafe fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies inside the mapping, which is zero at first.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start).as_ptr(), range.len()) }
    }

    /// # Safety
    /// While the slice lives nobody else reads or writes these bytes.
    #[expect(clippy::mut_from_ref, reason = "lanes share the memory and write disjoint parts of it")]
    pub unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies inside the mapping, which is zero at first.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start).as_ptr(), range.len()) }
    }
}

#[cfg(unix)]
impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `zeroed` with this length, and nobody borrows from it any more.
        unsafe { libc::munmap(self.base.as_ptr(), self.mapped) };
    }
}

/// Zeroed bytes that begin on a cache line, of which several lanes write disjoint parts.
#[cfg(not(unix))]
pub(crate) struct Region(super::memory::Shared<u8>);

#[cfg(not(unix))]
impl Region {
    pub fn zeroed(len: usize, what: &'static str) -> Result<Region, BackendError> {
        super::memory::Shared::zeroed(len, what).map(Region)
    }

    /// # Safety
    /// While the slice lives nobody writes these bytes.
    pub unsafe fn slice(&self, range: Range<usize>) -> &[u8] {
        // SAFETY: the caller's promise.
        unsafe { self.0.slice(range) }
    }

    /// # Safety
    /// While the slice lives nobody else reads or writes these bytes.
    #[expect(clippy::mut_from_ref, reason = "lanes share the memory and write disjoint parts of it")]
    pub unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [u8] {
        // SAFETY: the caller's promise.
        unsafe { self.0.slice_mut(range) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zero_and_keeps_what_is_written() {
        for len in [0, 1, 4096, (2 << 20) + 5, (4 << 20) + 100] {
            let region = Region::zeroed(len, "a test").unwrap();
            // SAFETY: nobody else has the region.
            let bytes = unsafe { region.slice_mut(0..len) };
            assert!(bytes.iter().all(|&b| b == 0) && bytes.as_ptr().align_offset(64) == 0);
            bytes.fill(7);
            // SAFETY: nobody writes any more.
            assert!(unsafe { region.slice(0..len) }.iter().all(|&b| b == 7));
        }
        assert!(Region::zeroed(usize::MAX, "a test").is_err() && Region::zeroed(1 << 60, "a test").is_err());
    }
}
