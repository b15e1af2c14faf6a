//! The paged cache, laid out for the attention kernels.
//!
//! A block's keys and values of all layers lie together, and block after block: so memory is touched as a context grows,
//! front to back, and large pages hold what is in use.
//!
//! Keys of a block of a KV head lie transposed, `[head_dim][position]`, so that the scores of all its positions are a
//! sum of vectors, one for each element of the head. Values lie `[position][head_dim]`, padded to whole vectors.

use std::sync::Arc;

use exotherm_tensor::formats::{f16_to_f32, f32_to_f16};

use super::memory::{Plain, Shared};
use super::simd::{Isa, WIDTH};
use crate::backend::{BackendError, KvType};
use crate::batch::BLOCK;
use crate::program::KvLayer;

// A block's scores are one vector.
const _: () = assert!(BLOCK == WIDTH);

/// Elements of the cache as they are stored, those of all layers.
#[derive(Clone)]
pub(crate) enum Cells {
    F32(Arc<Shared<f32>>),
    F16(Arc<Shared<u16>>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Keys,
    Values,
}

/// Keys or values of a layer: of each block a part, `[kv head]` and in it as the side has it.
pub(crate) struct KvPool {
    cells: Cells,
    side: Side,
    layer: KvLayer,
    /// Where they begin in a block, and elements of a block of all layers.
    first: usize,
    stride: usize,
    blocks: usize,
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

/// Elements that a position of a head takes.
fn of_position(side: Side, layer: KvLayer) -> usize {
    match side {
        Side::Keys => layer.head_dim,
        Side::Values => padded(layer.head_dim),
    }
}

/// Elements of a block of a layer's side.
fn of_layer(side: Side, layer: KvLayer) -> Option<usize> {
    BLOCK.checked_mul(layer.kv_heads)?.checked_mul(of_position(side, layer))
}

/// Elements to leave out after a block, so that the blocks of one head do not all fall on the same few places of the
/// processor's caches, as they do where a block is a multiple of their pages.
fn between_blocks(elements: usize, size: usize) -> usize {
    const PAGE: usize = 4096;
    let is_multiple = elements.checked_mul(size).is_some_and(|bytes| bytes > 0 && bytes.is_multiple_of(PAGE));
    if is_multiple { PAGE / 2 / size } else { 0 }
}

/// Elements of a block of all layers, with what is left out behind it.
fn of_block_of_all(size: usize, layers: &[KvLayer]) -> Option<usize> {
    let stride =
        sides(layers).try_fold(0usize, |sum, (side, layer)| sum.checked_add(of_layer(side, layer)?))?;
    stride.checked_add(between_blocks(stride, size))
}

fn sides(layers: &[KvLayer]) -> impl Iterator<Item = (Side, KvLayer)> {
    layers.iter().flat_map(|&layer| [(Side::Keys, layer), (Side::Values, layer)])
}

/// Bytes of a cache of so many blocks, if that is a number.
pub(crate) fn cache_bytes(kv_type: KvType, blocks: usize, layers: &[KvLayer]) -> Option<usize> {
    let size = kv_type.bytes();
    of_block_of_all(size, layers)?.checked_mul(blocks)?.checked_mul(size)
}

impl KvPool {
    /// The keys of every layer, and the values.
    pub fn zeroed(
        kv_type: KvType,
        blocks: usize,
        layers: &[KvLayer],
    ) -> Result<[Vec<KvPool>; 2], BackendError> {
        let what = "the KV cache";
        let too_large = BackendError::Memory { what, bytes: usize::MAX };
        let stride = of_block_of_all(kv_type.bytes(), layers);
        let Some((stride, len)) = stride.and_then(|stride| Some((stride, stride.checked_mul(blocks)?)))
        else {
            return Err(too_large);
        };
        let cells = match kv_type {
            KvType::F32 => Cells::F32(Arc::new(Shared::zeroed(len, what)?.on_large_pages())),
            KvType::F16 => Cells::F16(Arc::new(Shared::zeroed(len, what)?.on_large_pages())),
        };
        let (mut pools, mut first) = ([Vec::new(), Vec::new()], 0);
        for (side, layer) in sides(layers) {
            let cells = cells.clone();
            pools[side as usize].push(KvPool { cells, side, layer, first, stride, blocks });
            first += of_layer(side, layer).unwrap_or(0);
        }
        Ok(pools)
    }

    /// Bytes of the whole cache, of which this is a part.
    pub fn bytes_of_all(&self) -> usize {
        match &self.cells {
            Cells::F32(cells) => cells.bytes(),
            Cells::F16(cells) => cells.bytes(),
        }
    }

    /// Copies a block of all layers.
    ///
    /// # Safety
    /// Nobody else reads or writes the cache, that is, any layer's part of it, at the same time.
    pub unsafe fn copy_block_of_all(&self, from: usize, to: usize) {
        match &self.cells {
            // SAFETY: the caller's promise.
            Cells::F32(cells) => unsafe { cells.copy_part(self.stride, from, to) },
            // SAFETY: as above.
            Cells::F16(cells) => unsafe { cells.copy_part(self.stride, from, to) },
        }
    }

    pub fn cells(&self) -> &Cells {
        &self.cells
    }

    /// Elements of a block of one head.
    pub fn of_block(&self) -> usize {
        BLOCK * of_position(self.side, self.layer)
    }

    /// Where a head of a block begins.
    pub fn block_at(&self, block: usize, head: usize) -> usize {
        block * self.stride + self.first + head * self.of_block()
    }

    /// Where an element of a position of a block that begins at `at` lies.
    fn place(&self, at: usize, position: usize, element: usize) -> usize {
        match self.side {
            Side::Keys => at + element * BLOCK + position,
            Side::Values => at + position * of_position(self.side, self.layer) + element,
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
        let heads = move |block| (0..self.layer.kv_heads).map(move |head| self.block_at(block, head));
        let positions = (0..self.blocks).flat_map(heads).flat_map(|at| (0..BLOCK).map(move |p| (at, p)));
        positions.flat_map(move |(at, p)| (0..self.layer.head_dim).map(move |i| self.place(at, p, i)))
    }

    /// All elements in canonical order.
    ///
    /// # Safety
    /// Nobody writes the cache, that is, any layer's part of it, at the same time.
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
    /// Nobody else reads or writes the cache, that is, any layer's part of it, at the same time.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers of different shapes, and blocks with and without something between them.
    #[test]
    fn every_layer_keeps_what_is_written_to_it() {
        let shape = |kv_heads, head_dim| KvLayer { kv_heads, head_dim };
        for layers in [vec![shape(1, 12), shape(3, 16), shape(2, 7)], vec![shape(4, 64), shape(4, 64)]] {
            for kv_type in [KvType::F32, KvType::F16] {
                let blocks = 3;
                let sides = KvPool::zeroed(kv_type, blocks, &layers).unwrap();
                let values = |side: usize, layer: usize| {
                    let n = blocks * BLOCK * layers[layer].kv_heads * layers[layer].head_dim;
                    // Numbers that f16 holds.
                    (0..n).map(|i| ((i * 31 + layer * 7 + side * 3) % 2048) as f32).collect::<Vec<_>>()
                };
                for (side, pools) in sides.iter().enumerate() {
                    for (layer, pool) in pools.iter().enumerate() {
                        // SAFETY: nobody else has the cache.
                        unsafe { pool.write(&values(side, layer)) };
                    }
                }
                for (side, pools) in sides.iter().enumerate() {
                    for (layer, pool) in pools.iter().enumerate() {
                        // SAFETY: as above.
                        assert_eq!(unsafe { pool.read() }, values(side, layer), "side {side}, layer {layer}");
                    }
                }
            }
        }
    }

    #[test]
    fn sizes_that_no_machine_has_are_refused() {
        let layer = KvLayer { kv_heads: usize::MAX / 8, head_dim: 64 };
        assert!(KvPool::zeroed(KvType::F16, 1, &[layer]).is_err());
        let layer = KvLayer { kv_heads: 1, head_dim: 64 };
        assert!(KvPool::zeroed(KvType::F16, usize::MAX / 1024, &[layer, layer]).is_err());
        let [keys, values] = KvPool::zeroed(KvType::F16, 5, &[]).unwrap();
        assert!(keys.is_empty() && values.is_empty());
    }
}
