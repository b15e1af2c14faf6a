//! Weights in memory of our own, in the order in which the kernels read them.

use std::ops::Range;
use std::sync::Arc;

use exotherm_tensor::{DType, Tensor};

use super::context::Ctx;
use super::dots::PanelProduct;
use super::floats::{self, FloatProduct};
use super::input::Operand;
use super::memory::ScratchSizes;
use super::panels::{decode_panel_row, pack_panel};
use super::region::Region;
use super::simd::{Level, WIDTH};
use super::team::Team;
use crate::backend::{BackendError, Limits};
use crate::layout::Layout;
use crate::ops::Op;
use crate::program::{MatId, Matrix, Program};
use crate::rounding::Activations;

/// Columns of outputs that are made at a time for many rows.
const TILE: usize = 48;

/// Columns of outputs that are made at a time for one row.
const ONE_ROW_TILE: usize = 512;

/// Columns of outputs that are made at a time.
pub(crate) fn tile(rows: usize) -> usize {
    if rows == 1 { ONE_ROW_TILE } else { TILE }
}

/// File bytes that are packed before their pages are given back.
const PACKED_AT_ONCE: usize = 1 << 20;

/// A matrix whose segments lie one after another, each in panels of [`WIDTH`] rows; the last panel of a segment is filled
/// up with rows of zeros.
pub(crate) struct PackedMatrix {
    segments: Vec<Segment>,
    region: Arc<Region>,
    /// Of all segments.
    bytes: usize,
    n_in: usize,
    n_out: usize,
}

struct Segment {
    dtype: DType,
    rows: Range<usize>,
    /// Where its bytes begin.
    at: usize,
    panel_bytes: usize,
}

/// A lane's scratch for products.
pub(crate) struct Tiles<'a> {
    /// For the products of whole panels of which a part is wanted.
    pub whole: &'a mut [f32],
    pub tile: &'a mut [f32],
}

impl Segment {
    fn new(tensor: &Tensor, first: usize, at: usize) -> Option<Segment> {
        let (dtype, n_in) = (tensor.dtype(), tensor.n_in());
        let panel_bytes = match Layout::of(dtype) {
            Some(layout) => layout.panel_bytes(n_in)?,
            None => floats::panel_bytes(dtype, n_in)?,
        };
        Some(Segment { dtype, rows: first..first + tensor.n_rows(), at, panel_bytes })
    }

    fn panels(&self) -> usize {
        self.rows.len().div_ceil(WIDTH)
    }

    /// Where the segment after it may begin.
    fn end(&self) -> Option<usize> {
        let bytes = self.panel_bytes.checked_mul(self.panels())?.checked_next_multiple_of(64)?;
        bytes.checked_add(self.at)
    }

    /// The bytes of these panels.
    fn range(&self, panels: Range<usize>) -> Range<usize> {
        self.at + panels.start * self.panel_bytes..self.at + panels.end * self.panel_bytes
    }

    /// The segments of a matrix from byte `at` on, and where they end.
    fn all(matrix: &Matrix, at: usize) -> Option<(Vec<Segment>, usize)> {
        let (mut segments, mut at, mut row) = (Vec::with_capacity(matrix.segments.len()), at, 0);
        for tensor in &matrix.segments {
            let segment = Segment::new(tensor, row, at)?;
            (row, at) = (segment.rows.end, segment.end()?);
            segments.push(segment);
        }
        Some((segments, at))
    }
}

impl PackedMatrix {
    /// A matrix whose place in the region is from byte `at` on.
    fn placed(matrix: &Matrix, region: &Arc<Region>, at: usize) -> PackedMatrix {
        let (segments, end) = Segment::all(matrix, at).expect("the sizes were added up before");
        let (n_in, n_out) = (matrix.n_in, matrix.n_out);
        PackedMatrix { segments, region: region.clone(), bytes: end - at, n_in, n_out }
    }

    /// Packs the matrix into its place.
    fn fill(&self, matrix: &Matrix, team: &Team) {
        team.run(&|member| {
            for (segment, tensor) in self.segments.iter().zip(&matrix.segments) {
                let panels = share(segment.panels(), 1, member.id, member.of);
                let step = (PACKED_AT_ONCE / tensor.row_bytes() / WIDTH).max(1);
                for first in panels.clone().step_by(step) {
                    let part = first..(first + step).min(panels.end);
                    self.copy(segment, tensor, part);
                }
            }
        });
        matrix.segments.iter().for_each(Tensor::give_back);
    }

    /// Packs these panels of a segment, and gives back the pages they came from.
    fn copy(&self, segment: &Segment, tensor: &Tensor, panels: Range<usize>) {
        let rows = panels.start * WIDTH..(panels.end * WIDTH).min(tensor.n_rows());
        // SAFETY: every lane packs panels of its own share, and nobody reads before all are done.
        let to = unsafe { self.region.slice_mut(segment.range(panels)) };
        let row_bytes = tensor.row_bytes();
        let from = &tensor.bytes()[rows.start * row_bytes..rows.end * row_bytes];
        for (to, from) in to.chunks_exact_mut(segment.panel_bytes).zip(from.chunks(WIDTH * row_bytes)) {
            let mut rows = [&[][..]; WIDTH];
            let n = from.len() / row_bytes;
            rows.iter_mut().zip(from.chunks_exact(row_bytes)).for_each(|(row, bytes)| *row = bytes);
            match segment.dtype.is_quantized() {
                true => pack_panel(segment.dtype, &rows[..n], to),
                false => floats::pack_panel(segment.dtype, &rows[..n], self.n_in, to),
            }
        }
        tensor.rows(rows).give_back();
    }

    pub fn n_in(&self) -> usize {
        self.n_in
    }

    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// The bytes of these panels of a segment.
    fn weights(&self, segment: &Segment, panels: Range<usize>) -> &[u8] {
        // SAFETY: nobody writes weights after they are packed.
        unsafe { self.region.slice(segment.range(panels)) }
    }

    /// The products of weight rows `columns` with every row of `x`; that of column `columns.start + c` and row `r`
    /// goes to `out[r * columns.len() + c]`. `whole` has room for the products of the panels that `columns` touches.
    pub fn product(
        &self,
        level: Level,
        columns: Range<usize>,
        x: Operand,
        whole: &mut [f32],
        out: &mut [f32],
    ) {
        let stride = columns.len();
        for segment in &self.segments {
            let (from, to) = (columns.start.max(segment.rows.start), columns.end.min(segment.rows.end));
            if from >= to {
                continue;
            }
            let out = &mut out[from - columns.start..];
            let (from, to) = (from - segment.rows.start, to - segment.rows.start);
            let (dtype, columns) = (segment.dtype, to - from);
            let panels = self.weights(segment, from / WIDTH..to.div_ceil(WIDTH));
            if dtype.is_quantized() {
                let skip = from % WIDTH;
                PanelProduct { dtype, panels, x: x.ints, out, stride, skip, columns }.run(level);
                continue;
            }
            let n_in = self.n_in;
            let product = |out, stride| match level.has_pairs() && dtype == DType::BF16 {
                true => {
                    floats::pair_product(level, FloatProduct { dtype, panels, n_in, x: x.pairs, out, stride })
                }
                false => {
                    floats::product(level, FloatProduct { dtype, panels, n_in, x: x.floats, out, stride })
                }
            };
            if from.is_multiple_of(WIDTH) && to.is_multiple_of(WIDTH) {
                product(out, stride);
                continue;
            }
            let width = panels.len() / segment.panel_bytes * WIDTH;
            let whole = &mut whole[..x.len() * width];
            product(whole, width);
            for (row, products) in whole.chunks_exact(width).enumerate() {
                out[row * stride..][..columns].copy_from_slice(&products[from % WIDTH..][..columns]);
            }
        }
    }

    /// Calls `each` with the row of `x`, the first column and the products of a few columns with that row, for all
    /// of `columns`.
    pub fn for_products(
        &self,
        level: Level,
        columns: Range<usize>,
        x: Operand,
        tiles: &mut Tiles,
        mut each: impl FnMut(usize, usize, &mut [f32]),
    ) {
        let width = tile(x.len());
        for first in columns.clone().step_by(width) {
            let part = first..(first + width).min(columns.end);
            let tile = &mut tiles.tile[..x.len() * part.len()];
            self.product(level, part.clone(), x, tiles.whole, tile);
            for (row, products) in tile.chunks_exact_mut(part.len()).enumerate() {
                each(row, first, products);
            }
        }
    }

    /// Decodes a row.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let segment =
            self.segments.iter().find(|s| s.rows.contains(&row)).expect("the row is one of the matrix");
        let row = row - segment.rows.start;
        let panel = self.weights(segment, row / WIDTH..row / WIDTH + 1);
        match segment.dtype.is_quantized() {
            true => decode_panel_row(segment.dtype, panel, row % WIDTH, out),
            false => floats::decode_panel_row(segment.dtype, panel, row % WIDTH, self.n_in, out),
        }
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

/// Packs what the ops ask for and adds up the scratch they need; or only adds up.
pub(crate) struct Packer<'a> {
    pub program: &'a Program,
    pub limits: &'a Limits,
    pub activations: Activations,
    /// Who packs. Without a team nothing is packed and no memory is taken: only the sizes are found out.
    team: Option<&'a Team>,
    lanes: usize,
    /// Where in the region each matrix begins that an op multiplies with.
    places: Vec<Option<usize>>,
    region: Arc<Region>,
    packed: Vec<Option<Arc<PackedMatrix>>>,
    sizes: ScratchSizes,
    overflow: bool,
}

impl<'a> Packer<'a> {
    /// Takes the memory for all matrices that ops multiply with: in one piece, because what is left over at the ends
    /// of pieces would count as used.
    pub fn new(
        program: &'a Program,
        limits: &'a Limits,
        team: &'a Team,
        activations: Activations,
    ) -> Result<Packer<'a>, BackendError> {
        Packer::with(program, limits, Some(team), team.lanes(), activations)
    }

    /// Finds out what a program takes on so many lanes.
    pub fn measuring(
        program: &'a Program,
        limits: &'a Limits,
        lanes: usize,
        activations: Activations,
    ) -> Result<Packer<'a>, BackendError> {
        Packer::with(program, limits, None, lanes, activations)
    }

    fn with(
        program: &'a Program,
        limits: &'a Limits,
        team: Option<&'a Team>,
        lanes: usize,
        activations: Activations,
    ) -> Result<Packer<'a>, BackendError> {
        let mut places = vec![None; program.matrices().len()];
        for op in program.ops().iter().filter(|op| !matches!(op, Op::Embed(_))) {
            op.for_each_matrix(program, &mut |id, _| places[id.0 as usize] = Some(0));
        }
        let (what, mut size) = ("the weights", 0);
        for (place, matrix) in places.iter_mut().zip(program.matrices()) {
            if let Some(place) = place {
                let end = Segment::all(matrix, size).map(|(_, end)| end);
                *place = size;
                size = end.ok_or(BackendError::Memory { what, bytes: usize::MAX })?;
            }
        }
        Ok(Packer {
            program,
            limits,
            activations,
            team,
            lanes,
            packed: program.matrices().iter().map(|_| None).collect(),
            places,
            region: Arc::new(Region::zeroed(if team.is_some() { size } else { 0 }, what)?),
            sizes: ScratchSizes::default(),
            overflow: false,
        })
    }

    /// The rows of an activation in the largest step.
    pub fn max_rows(&self) -> usize {
        self.limits.rows.max(self.limits.logit_rows)
    }

    /// Lanes that the program will run on.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// A matrix to multiply with, and the scratch for it.
    pub fn matrix(&mut self, id: MatId) -> Arc<PackedMatrix> {
        let matrix = self.program.matrix(id);
        if matrix.segments.iter().any(|s| !s.dtype().is_quantized()) {
            // A tile may begin and end within panels.
            self.need(|s| &mut s.whole, &[TILE + 2 * WIDTH, self.max_rows()]);
            self.need(|s| &mut s.whole, &[ONE_ROW_TILE + 2 * WIDTH]);
        }
        // Two tiles, for gates and ups.
        self.need(|s| &mut s.tile, &[2, TILE, self.max_rows()]);
        self.need(|s| &mut s.tile, &[2, ONE_ROW_TILE]);
        self.pack(id)
    }

    /// A matrix to look rows up in.
    pub fn table(&mut self, id: MatId) -> Table {
        match self.places[id.0 as usize] {
            Some(_) => Table::Packed(self.pack(id)),
            None => Table::InPlace(id),
        }
    }

    fn pack(&mut self, id: MatId) -> Arc<PackedMatrix> {
        let at = self.places[id.0 as usize].expect("an op names every matrix that it multiplies with");
        let place = &mut self.packed[id.0 as usize];
        if let Some(packed) = place {
            return packed.clone();
        }
        let matrix = self.program.matrix(id);
        let packed = PackedMatrix::placed(matrix, &self.region, at);
        if let Some(team) = self.team {
            packed.fill(matrix, team);
        }
        place.insert(Arc::new(packed)).clone()
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

    /// Bytes of all weights: of matrices as packed, or as they are where they were left in place.
    pub fn weight_bytes(&self) -> usize {
        let pairs = || self.packed.iter().zip(self.program.matrices());
        let packed: usize = pairs().map(|(packed, m)| packed.as_ref().map_or(m.bytes(), |p| p.bytes)).sum();
        packed + self.program.weight_bytes() - pairs().map(|(_, m)| m.bytes()).sum::<usize>()
    }
}
