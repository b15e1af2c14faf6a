//! Weights in memory of our own, in the order in which the kernels read them.

use std::ops::Range;
use std::sync::Arc;

use exotherm_tensor::{DType, Tensor};

use super::context::Ctx;
use super::memory::{ScratchSizes, Shared};
use super::product::{Product, Rows, decoded_floats};
use super::simd::{Level, WIDTH};
use super::team::Team;
use crate::backend::{BackendError, Limits};
use crate::ops::Op;
use crate::program::{MatId, Matrix, Program};

/// Columns of outputs that are made at a time.
pub(crate) const TILE: usize = 32;

/// A matrix whose rows lie one after another from a cache line on; the rows of float types are padded with zeros to
/// whole vectors.
pub(crate) struct PackedMatrix {
    segments: Vec<Segment>,
    bytes: Shared<u8>,
    n_in: usize,
    n_out: usize,
}

struct Segment {
    dtype: DType,
    rows: Range<usize>,
    /// Where its bytes begin.
    at: usize,
    row_bytes: usize,
}

/// A lane's scratch for products.
pub(crate) struct Tiles<'a> {
    pub decoded: &'a mut [f32],
    pub tile: &'a mut [f32],
}

impl PackedMatrix {
    fn pack(matrix: &Matrix, team: &Team) -> Result<PackedMatrix, BackendError> {
        let mut segments: Vec<Segment> = Vec::with_capacity(matrix.segments.len());
        let mut size = Some(0usize);
        for tensor in &matrix.segments {
            let row_bytes = packed_row_bytes(tensor);
            let first = segments.last().map_or(0, |s| s.rows.end);
            let at = size.unwrap_or(0);
            size = row_bytes
                .checked_mul(tensor.n_rows())
                .and_then(|bytes| bytes.checked_next_multiple_of(64))
                .and_then(|bytes| bytes.checked_add(at));
            segments.push(Segment {
                dtype: tensor.dtype(),
                rows: first..first + tensor.n_rows(),
                at,
                row_bytes,
            });
        }
        let what = "the weights";
        let size = size.ok_or(BackendError::Memory { what, bytes: usize::MAX })?;
        let packed = PackedMatrix {
            segments,
            bytes: Shared::zeroed(size, what)?,
            n_in: matrix.n_in,
            n_out: matrix.n_out,
        };
        team.run(&|member| {
            for (segment, tensor) in packed.segments.iter().zip(&matrix.segments) {
                packed.copy(segment, tensor, share(segment.rows.len(), 1, member.id, member.of));
            }
        });
        matrix.segments.iter().for_each(Tensor::give_back);
        Ok(packed)
    }

    /// Copies these rows of a segment, counted from its first.
    fn copy(&self, segment: &Segment, tensor: &Tensor, rows: Range<usize>) {
        let (from, from_row, to_row) = (tensor.bytes(), tensor.row_bytes(), segment.row_bytes);
        let range = segment.at + rows.start * to_row..segment.at + rows.end * to_row;
        // SAFETY: every lane copies rows of its own share, and nobody reads before all are done.
        let to = unsafe { self.bytes.slice_mut(range) };
        let from = &from[rows.start * from_row..rows.end * from_row];
        if from_row == to_row {
            return to.copy_from_slice(from);
        }
        for (to, from) in to.chunks_exact_mut(to_row).zip(from.chunks_exact(from_row)) {
            to[..from_row].copy_from_slice(from);
        }
    }

    pub fn n_in(&self) -> usize {
        self.n_in
    }

    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// The products of weight rows `columns` with every row of `x`; that of column `columns.start + c` and row `r`
    /// goes to `out[r * columns.len() + c]`.
    pub fn product(
        &self,
        level: Level,
        columns: Range<usize>,
        x: Rows,
        decoded: &mut [f32],
        out: &mut [f32],
    ) {
        let stride = columns.len();
        for segment in &self.segments {
            let (from, to) = (columns.start.max(segment.rows.start), columns.end.min(segment.rows.end));
            if from >= to {
                continue;
            }
            let at = |row: usize| segment.at + (row - segment.rows.start) * segment.row_bytes;
            let product = Product {
                dtype: segment.dtype,
                // SAFETY: nobody writes weights after they are packed.
                weights: unsafe { self.bytes.slice(at(from)..at(to)) },
                row_bytes: segment.row_bytes,
                x,
                decoded: &mut *decoded,
                out: &mut out[from - columns.start..],
                stride,
            };
            product.run(level);
        }
    }

    /// Calls `each` with the row of `x`, the first column and the products of a few columns with that row, for all
    /// of `columns`.
    pub fn for_products(
        &self,
        level: Level,
        columns: Range<usize>,
        x: Rows,
        tiles: &mut Tiles,
        mut each: impl FnMut(usize, usize, &mut [f32]),
    ) {
        for first in columns.clone().step_by(TILE) {
            let part = first..(first + TILE).min(columns.end);
            let tile = &mut tiles.tile[..x.len() * part.len()];
            self.product(level, part.clone(), x, tiles.decoded, tile);
            for (row, products) in tile.chunks_exact_mut(part.len()).enumerate() {
                each(row, first, products);
            }
        }
    }

    /// Decodes a row.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let segment =
            self.segments.iter().find(|s| s.rows.contains(&row)).expect("the row is one of the matrix");
        let at = segment.at + (row - segment.rows.start) * segment.row_bytes;
        let bytes = segment.dtype.row_bytes(self.n_in).expect("the tensor has whole blocks");
        // SAFETY: nobody writes weights after they are packed.
        let bytes = unsafe { self.bytes.slice(at..at + bytes) };
        exotherm_tensor::formats::decode(segment.dtype, bytes, out);
    }
}

fn packed_row_bytes(tensor: &Tensor) -> usize {
    let (dtype, n_in) = (tensor.dtype(), tensor.n_in());
    match dtype.is_quantized() {
        true => tensor.row_bytes(),
        false => n_in.next_multiple_of(WIDTH) * dtype.block_bytes(),
    }
}

/// Lane `id`'s part of `n` things that are handed out in units of `unit`.
pub(crate) fn share(n: usize, unit: usize, id: usize, of: usize) -> Range<usize> {
    let units = n.div_ceil(unit);
    let bound = |i: usize| (units * i / of * unit).min(n);
    bound(id)..bound(id + 1)
}

/// What of `range` lies in the `n` from `at` on, counted from there.
pub(crate) fn overlap(range: &Range<usize>, at: usize, n: usize) -> Range<usize> {
    let bound = |i: usize| i.clamp(at, at + n) - at;
    bound(range.start)..bound(range.end)
}

/// A table of which single rows are read: packed if a projection uses it, too, and else left where it is.
pub(crate) enum Table {
    Packed(Arc<PackedMatrix>),
    InPlace(MatId),
}

impl Table {
    pub fn decode_row(&self, cx: &Ctx, row: usize, out: &mut [f32]) {
        match self {
            Table::Packed(matrix) => matrix.decode_row(row, out),
            Table::InPlace(id) => cx.program.matrix(*id).decode_row(row, out),
        }
    }
}

/// Packs what the ops ask for and adds up the scratch they need.
pub(crate) struct Packer<'a> {
    pub program: &'a Program,
    pub limits: &'a Limits,
    team: &'a Team,
    packed: Vec<Option<Arc<PackedMatrix>>>,
    sizes: ScratchSizes,
    overflow: bool,
}

impl<'a> Packer<'a> {
    pub fn new(program: &'a Program, limits: &'a Limits, team: &'a Team) -> Packer<'a> {
        let packed = program.matrices().iter().map(|_| None).collect();
        Packer { program, limits, team, packed, sizes: ScratchSizes::default(), overflow: false }
    }

    /// The rows of an activation in the largest step.
    pub fn max_rows(&self) -> usize {
        self.limits.rows.max(self.limits.logit_rows)
    }

    /// Lanes that the program will run on.
    pub fn lanes(&self) -> usize {
        self.team.lanes()
    }

    /// A matrix to multiply with, and the scratch for it.
    pub fn matrix(&mut self, id: MatId) -> Result<Arc<PackedMatrix>, BackendError> {
        let n_in = self.program.matrix(id).n_in;
        match decoded_floats(n_in) {
            Some(floats) => self.sizes.decoded = self.sizes.decoded.max(floats),
            None => self.overflow = true,
        }
        // Two tiles, for gates and ups.
        self.need(|s| &mut s.tile, &[2, TILE, self.max_rows()]);
        self.pack(id)
    }

    /// A matrix to look rows up in.
    pub fn table(&mut self, id: MatId) -> Result<Table, BackendError> {
        let mut is_projection = false;
        for op in self.program.ops().iter().filter(|op| !matches!(op, Op::Embed(_))) {
            op.for_each_matrix(self.program, &mut |other, _| is_projection |= other == id);
        }
        match is_projection {
            true => self.pack(id).map(Table::Packed),
            false => Ok(Table::InPlace(id)),
        }
    }

    fn pack(&mut self, id: MatId) -> Result<Arc<PackedMatrix>, BackendError> {
        let place = &mut self.packed[id.0 as usize];
        if let Some(packed) = place {
            return Ok(packed.clone());
        }
        let packed = Arc::new(PackedMatrix::pack(self.program.matrix(id), self.team)?);
        Ok(place.insert(packed).clone())
    }

    /// Room for as many elements as the product of `factors` in one part of the scratch.
    pub fn need(&mut self, part: impl Fn(&mut ScratchSizes) -> &mut usize, factors: &[usize]) {
        match factors.iter().try_fold(1usize, |product, &f| product.checked_mul(f)) {
            Some(elements) => {
                let part = part(&mut self.sizes);
                *part = (*part).max(elements);
            }
            None => self.overflow = true,
        }
    }

    pub fn finish(self) -> Result<ScratchSizes, BackendError> {
        match self.overflow {
            true => Err(BackendError::Memory { what: "scratch", bytes: usize::MAX }),
            false => Ok(self.sizes),
        }
    }

    /// The program with the weights only of the matrices that were left in place.
    pub fn program_left(&self) -> Program {
        self.program.without_weights(&|id| self.packed[id.0 as usize].is_none())
    }

    /// Bytes of the matrices: as packed, or as they are where they were left in place.
    pub fn matrix_bytes(&self) -> usize {
        let matrices = self.packed.iter().zip(self.program.matrices());
        matrices.map(|(packed, m)| packed.as_ref().map_or_else(|| m.bytes(), |p| p.bytes.bytes())).sum()
    }
}
