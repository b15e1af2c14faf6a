//! The paged cache of a layer, laid out for the attention kernels.
//!
//! Keys of a block of a KV head lie transposed, `[head_dim][position]`, so that the scores of all its positions are a
//! sum of vectors, one for each element of the head. Values lie `[position][head_dim]`, padded to whole vectors.

use exotherm_tensor::formats::{f16_to_f32, f32_to_f16};

use super::memory::{Plain, Shared};
use super::simd::{Isa, WIDTH};
use crate::backend::{BackendError, KvType};
use crate::batch::BLOCK;
use crate::program::KvLayer;

// A block's scores are one vector.
const _: () = assert!(BLOCK == WIDTH);

/// Elements of the cache as they are stored.
pub(crate) enum Cells {
    F32(Shared<f32>),
    F16(Shared<u16>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Keys,
    Values,
}

/// Keys or values of a layer, `[block][kv head]` and in it as the side has it.
pub(crate) struct KvPool {
    cells: Cells,
    side: Side,
    layer: KvLayer,
}

/// How one element of the cache is stored.
pub(crate) trait Stored: Plain {
    /// Whether it is f32 as it is.
    const IS_FLOAT: bool;

    fn load<I: Isa>(isa: I, from: &[Self; WIDTH]) -> I::V;
    fn store<I: Isa>(isa: I, value: I::V, to: &mut [Self; WIDTH]);
}

impl Stored for f32 {
    const IS_FLOAT: bool = true;

    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[f32; WIDTH]) -> I::V {
        isa.load(from)
    }

    #[inline(always)]
    fn store<I: Isa>(isa: I, value: I::V, to: &mut [f32; WIDTH]) {
        isa.store(value, to);
    }
}

impl Stored for u16 {
    const IS_FLOAT: bool = false;

    #[inline(always)]
    fn load<I: Isa>(isa: I, from: &[u16; WIDTH]) -> I::V {
        isa.halves_to_floats(from)
    }

    #[inline(always)]
    fn store<I: Isa>(isa: I, value: I::V, to: &mut [u16; WIDTH]) {
        isa.store_halves(value, to);
    }
}

/// Elements that a value takes.
pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(WIDTH)
}

impl KvPool {
    pub fn zeroed(
        side: Side,
        kv_type: KvType,
        blocks: usize,
        layer: KvLayer,
    ) -> Result<KvPool, BackendError> {
        let what = "the KV cache";
        let of_head = if side == Side::Keys { layer.head_dim } else { padded(layer.head_dim) };
        let factors = [blocks, BLOCK, layer.kv_heads, of_head];
        let len = factors.iter().try_fold(1usize, |product, &f| product.checked_mul(f));
        let len = len.ok_or(BackendError::Memory { what, bytes: usize::MAX })?;
        let cells = match kv_type {
            KvType::F32 => Cells::F32(Shared::zeroed(len, what)?),
            KvType::F16 => Cells::F16(Shared::zeroed(len, what)?),
        };
        Ok(KvPool { cells, side, layer })
    }

    pub fn bytes(&self) -> usize {
        match &self.cells {
            Cells::F32(cells) => cells.bytes(),
            Cells::F16(cells) => cells.bytes(),
        }
    }

    pub fn cells(&self) -> &Cells {
        &self.cells
    }

    /// Elements that a position of a head takes.
    fn of_position(&self) -> usize {
        match self.side {
            Side::Keys => self.layer.head_dim,
            Side::Values => padded(self.layer.head_dim),
        }
    }

    /// Elements of a block of one head.
    pub fn of_block(&self) -> usize {
        BLOCK * self.of_position()
    }

    /// Where a head of a block begins.
    pub fn block_at(&self, block: usize, head: usize) -> usize {
        (block * self.layer.kv_heads + head) * self.of_block()
    }

    /// Where an element of a position of a block that begins at `at` lies.
    fn place(&self, at: usize, position: usize, element: usize) -> usize {
        match self.side {
            Side::Keys => at + element * BLOCK + position,
            Side::Values => at + position * self.of_position() + element,
        }
    }

    /// Stores a key or value at a position of a block.
    ///
    /// # Safety
    /// Nobody else reads or writes the elements of this head and position at the same time.
    #[inline(always)]
    pub unsafe fn store<I: Isa>(&self, isa: I, block: usize, head: usize, position: usize, vector: &[f32]) {
        match &self.cells {
            // SAFETY: the caller's promise.
            Cells::F32(cells) => unsafe { self.store_as(isa, cells, (block, head, position), vector) },
            // SAFETY: as above.
            Cells::F16(cells) => unsafe { self.store_as(isa, cells, (block, head, position), vector) },
        }
    }

    /// # Safety
    /// As for `store`.
    #[inline(always)]
    unsafe fn store_as<I: Isa, E: Stored>(
        &self,
        isa: I,
        cells: &Shared<E>,
        (block, head, position): (usize, usize, usize),
        vector: &[f32],
    ) {
        let at = self.block_at(block, head);
        for from in (0..vector.len()).step_by(WIDTH) {
            let elements = WIDTH.min(vector.len() - from);
            let mut stored = [E::default(); WIDTH];
            E::store(isa, isa.load_at(vector, from), &mut stored);
            let first = self.place(at, position, from);
            if self.side == Side::Values {
                // SAFETY: the caller's promise.
                unsafe { cells.slice_mut(first..first + elements) }.copy_from_slice(&stored[..elements]);
                continue;
            }
            for (i, &element) in stored[..elements].iter().enumerate() {
                let place = first + i * BLOCK;
                // SAFETY: the caller's promise.
                unsafe { cells.slice_mut(place..place + 1).copy_from_slice(&[element]) };
            }
        }
    }

    /// Where all elements lie, in canonical order.
    fn places(&self) -> impl Iterator<Item = usize> + '_ {
        let len = match &self.cells {
            Cells::F32(cells) => cells.len(),
            Cells::F16(cells) => cells.len(),
        };
        let positions =
            (0..len).step_by(self.of_block().max(1)).flat_map(|at| (0..BLOCK).map(move |p| (at, p)));
        positions.flat_map(move |(at, p)| (0..self.layer.head_dim).map(move |i| self.place(at, p, i)))
    }

    /// All elements in canonical order.
    ///
    /// # Safety
    /// Nobody writes the cache at the same time.
    pub unsafe fn read(&self) -> Vec<f32> {
        match &self.cells {
            Cells::F32(cells) => {
                // SAFETY: the caller's promise.
                let cells = unsafe { cells.slice(0..cells.len()) };
                self.places().map(|at| cells[at]).collect()
            }
            Cells::F16(cells) => {
                // SAFETY: the caller's promise.
                let cells = unsafe { cells.slice(0..cells.len()) };
                self.places().map(|at| f16_to_f32(cells[at])).collect()
            }
        }
    }

    /// Writes the first elements in canonical order.
    ///
    /// # Safety
    /// Nobody else reads or writes the cache at the same time.
    pub unsafe fn write(&self, values: &[f32]) {
        match &self.cells {
            Cells::F32(cells) => {
                // SAFETY: the caller's promise.
                let cells = unsafe { cells.slice_mut(0..cells.len()) };
                self.places().zip(values).for_each(|(at, &value)| cells[at] = value);
            }
            Cells::F16(cells) => {
                // SAFETY: the caller's promise.
                let cells = unsafe { cells.slice_mut(0..cells.len()) };
                self.places().zip(values).for_each(|(at, &value)| cells[at] = f32_to_f16(value));
            }
        }
    }
}
