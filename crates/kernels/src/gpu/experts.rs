//! Products of many rows with the matrices of their experts: the pairs of a row and an expert are sorted by experts, and each tile
//! is of one expert alone. What the experts of a row make is added up at last, in the order of its routes, so that it does not depend
//! on where in a tile a pair came to lie.

use std::ops::Range;

use super::kernel::Kernel;
use super::linear::{self, Input};
use super::many::{self, Of, Prepared, Shape};
use super::record::{Count, Piece, Recorder, View};
use crate::backend::BackendError;
use crate::ops::{MoeDown, MoeGateUp, moe_down, moe_gate_up};
use crate::program::{Buf, Rows};

/// Lanes that sort.
const SORT_LANES: usize = 256;
const SUM_LANES: usize = 64;

/// The pairs in the order of their experts, behind a table of tiles.
struct Order {
    view: View,
    /// Where the pairs begin.
    pairs_at: usize,
    tiles: Count,
}

impl Order {
    /// Sorts the pairs of a step for tiles of this shape.
    fn record(
        recorder: &mut Recorder,
        shape: &Shape,
        routes: Buf,
        (experts, top_k): (usize, usize),
    ) -> Result<Order, BackendError> {
        let pairs = recorder.limits.rows.saturating_mul(top_k);
        let pairs_at = (pairs / shape.rows() + experts.min(pairs)).saturating_mul(3);
        let view = recorder.common_scratch("order of pairs", &[pairs_at.saturating_add(pairs)])?;
        let mut kernel = Kernel::new("experts_order", SORT_LANES);
        let routes = recorder.buf(routes);
        kernel.read("routes", "f32", routes);
        kernel.write("order", "u32", view);
        kernel.size("EXPERTS", experts);
        kernel.size("TOP_K", top_k);
        kernel.size("TILE", shape.rows());
        kernel.size("PAIRS_AT", pairs_at);
        kernel.part(include_str!("wgsl/experts_order.wgsl"));
        recorder.dispatch(&kernel, [Count::Fixed(1); 3]);
        Ok(Order { view, pairs_at, tiles: Count::Pairs { of_row: top_k, per: shape.rows(), experts } })
    }
}

/// What the products of one op have in common.
struct Products<'a> {
    label: &'static str,
    shape: &'a Shape,
    order: Order,
    prepared: Prepared,
    /// Outputs of an expert.
    outs: usize,
    /// Pairs that a prepared row is for.
    pairs_of_row: usize,
    to: View,
}

impl Products<'_> {
    /// A kernel for the weights' rows `rows`; what the weights are follows.
    fn kernel(&self, recorder: &Recorder, piece: &Piece, rows: &Range<usize>, halves: usize) -> Kernel {
        let mut kernel = self.shape.kernel(self.label, recorder.traits, piece.layout.units);
        self.prepared.bind(&mut kernel);
        kernel.read("order", "u32", self.order.view);
        kernel.write("y", "f32", self.to);
        kernel.size("HALVES", halves);
        kernel.size("N_OUT", self.outs);
        kernel.size("PAIRS_AT", self.order.pairs_at);
        kernel.size("PAIRS_OF_ROW", self.pairs_of_row);
        kernel.size("FIRST", rows.start);
        kernel.size("END", rows.end);
        kernel
    }

    fn dispatch(&self, recorder: &mut Recorder, mut kernel: Kernel, halves: usize) {
        kernel.part(include_str!("wgsl/experts_tile.wgsl"));
        // Not by a function, through which nobody would see that all lanes agree.
        self.shape.finish(&mut kernel, "if (order[3u * wg.x + 1u] == 0u) { return; }");
        let out_tiles = self.outs.div_ceil(self.shape.outs() / halves);
        recorder.dispatch(&kernel, [self.order.tiles, Count::Fixed(out_tiles), Count::Fixed(1)]);
    }
}

/// Rows of weights that lie in a piece of either matrix.
pub(crate) fn overlaps(gates: &[Piece], ups: &[Piece]) -> Vec<(Piece, Piece, Range<usize>)> {
    let of_both = |gate: &Piece, up: &Piece| {
        let rows = gate.rows.start.max(up.rows.start)..gate.rows.end.min(up.rows.end);
        (!rows.is_empty()).then(|| (gate.clone(), up.clone(), rows))
    };
    gates.iter().flat_map(|gate| ups.iter().filter_map(move |up| of_both(gate, up))).collect()
}

/// Gates and ups, in the steps that are not for the kernels for few rows.
pub(crate) fn gate_up(op: &MoeGateUp, recorder: &mut Recorder) -> Result<(), BackendError> {
    let takes = |gate: &Piece, up: &Piece| many::takes(gate.layout.dtype) && many::takes(up.layout.dtype);
    let (gates, ups) = (recorder.pieces(op.gate)?, recorder.pieces(op.up)?);
    let pieces = overlaps(&gates, &ups);
    for (rows, shape) in many::classes(recorder, Of::Experts) {
        recorder.for_rows(rows, |recorder| {
            let left = pieces.iter().filter(|(gate, up, _)| !takes(gate, up));
            left.for_each(|(gate, up, rows)| moe_gate_up::gpu::any_device(op, recorder, gate, up, rows));
            let taken: Vec<_> = pieces.iter().filter(|(gate, up, _)| takes(gate, up)).collect();
            if taken.is_empty() {
                return Ok(());
            }
            let width = recorder.width(op.normed);
            let normed = recorder.buf(op.normed);
            let input = Input { rows: normed, width, at: 0, norm: None, of: Rows::Batch };
            let products = Products {
                label: "experts_gate_up",
                shape: &shape,
                order: Order::record(recorder, &shape, op.routes, (op.experts, op.top_k))?,
                prepared: many::prepare(recorder, &input, width, 1)?,
                outs: op.hidden(recorder.program),
                pairs_of_row: op.top_k,
                to: recorder.buf(op.out),
            };
            taken.iter().for_each(|(gate, up, rows)| one_gate_up(op, recorder, &products, gate, up, rows));
            Ok(())
        })?;
    }
    Ok(())
}

fn one_gate_up(
    op: &MoeGateUp,
    recorder: &mut Recorder,
    products: &Products,
    gate: &Piece,
    up: &Piece,
    rows: &Range<usize>,
) {
    let mut kernel = products.kernel(recorder, gate, rows, 2);
    moe_gate_up::gpu::read_weights(&mut kernel, gate, up);
    let value = linear::activated(op.activation, "", "");
    kernel.part(&format!("fn finished(first: f32, second: f32) -> f32 {{ return {value}; }}"));
    kernel.part(include_str!("wgsl/experts_gate_up.wgsl"));
    products.dispatch(recorder, kernel, 2);
}

/// Down projections, in the steps that are not for the kernels for few rows.
pub(crate) fn down(op: &MoeDown, recorder: &mut Recorder) -> Result<(), BackendError> {
    let outs = recorder.width(op.residual);
    let pieces = recorder.pieces(op.down)?;
    for (rows, shape) in many::classes(recorder, Of::Experts) {
        recorder.for_rows(rows, |recorder| {
            let (taken, left): (Vec<_>, Vec<_>) = pieces.iter().partition(|p| many::takes(p.layout.dtype));
            left.into_iter().for_each(|piece| moe_down::gpu::any_device(op, recorder, piece));
            if taken.is_empty() {
                return Ok(());
            }
            let columns = recorder.program.matrix(op.down).n_in;
            let hidden = recorder.buf(op.hidden);
            let input = Input { rows: hidden, width: columns, at: 0, norm: None, of: Rows::Batch };
            let sizes = [outs, op.top_k, recorder.limits.rows];
            let products = Products {
                label: "experts_down",
                shape: &shape,
                order: Order::record(recorder, &shape, op.routes, (op.experts, op.top_k))?,
                prepared: many::prepare(recorder, &input, columns, op.top_k)?,
                outs,
                pairs_of_row: 1,
                to: recorder.common_scratch("results of pairs", &sizes)?,
            };
            for piece in taken {
                let mut kernel = products.kernel(recorder, piece, &piece.rows, 1);
                kernel.read("weights", "vec4<u32>", piece.view);
                kernel.size("STRIDE", piece.layout.stride / 4);
                kernel.part(&piece.layout.decoder("weights", ""));
                kernel.part(include_str!("wgsl/experts_down.wgsl"));
                products.dispatch(recorder, kernel, 1);
                sum(op, recorder, products.to, piece);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Adds what the experts of a piece made to the rows.
fn sum(op: &MoeDown, recorder: &mut Recorder, made: View, piece: &Piece) {
    let outs = recorder.width(op.residual);
    let mut kernel = Kernel::new("experts_sum", SUM_LANES);
    let (routes, y) = (recorder.buf(op.routes), recorder.buf(op.residual));
    kernel.read("routes", "f32", routes);
    kernel.read("made", "f32", made);
    kernel.write("y", "f32", y);
    kernel.size("TOP_K", op.top_k);
    kernel.size("N_OUT", outs);
    kernel.size("FIRST", piece.rows.start);
    kernel.size("END", piece.rows.end);
    kernel.part(include_str!("wgsl/experts_sum.wgsl"));
    recorder.dispatch(&kernel, [Count::Fixed(outs.div_ceil(SUM_LANES)), Count::Rows(1), Count::Fixed(1)]);
}
