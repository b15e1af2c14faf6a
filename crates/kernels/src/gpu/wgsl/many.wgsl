// A tile of ROWS rows and OUTS outputs: see many.rs. What comes before says which rows and weights a tile has: tile_at, made_row,
// weights_of, weights_quad, finish_row.

// Quads of a row in workgroup memory: those of a step, and two more, so that rows begin in different banks.
const PITCH: u32 = 8u * UNITS_AT_ONCE + 2u;
// Outputs of a tile: half as many where gates and ups lie behind one another.
const TILE_OUTS: u32 = OUTS / HALVES;
const STEPS: u32 = (UNITS + UNITS_AT_ONCE - 1u) / UNITS_AT_ONCE;

var<workgroup> tile_rows: array<Quad, BUFFERS * ROWS * PITCH>;
var<workgroup> tile_outs: array<Quad, BUFFERS * OUTS * PITCH>;
// A block of 16 by 16 sums of every group.
var<workgroup> blocks: array<f32, GROUPS * 256u>;

// What a lane brings for a step, in registers until the step before is done.
struct Fetched {
    quads: array<Quad, ROW_LOADS>,
    units: array<Weights, UNIT_LOADS>,
}

fn fetched(lane: u32, tile: Tile, first_out: u32, step: u32) -> Fetched {
    var next: Fetched;
    var n = lane;
    @repeat i ROW_LOADS
    n = lane + @iu * WG;
    let row_@i = made_row(tile, min(n / (8u * UNITS_AT_ONCE), tile.count - 1u));
    next.quads[@i] = prepared[row_@i * PREPARED + (step * UNITS_AT_ONCE * 8u + n % (8u * UNITS_AT_ONCE))];
    @end
    @repeat i UNIT_LOADS
    n = lane + @iu * WG;
    // Units past the row's end stay zero.
    let unit_@i = step * UNITS_AT_ONCE + n % UNITS_AT_ONCE;
    if (unit_@i < UNITS && n < OUTS * UNITS_AT_ONCE) {
        let o = n / UNITS_AT_ONCE;
        next.units[@i] = weights_of(tile, min(first_out + o % TILE_OUTS, N_OUT - 1u), o >= TILE_OUTS, unit_@i);
    }
    @end
    return next;
}

fn put(lane: u32, buffer: u32, next: Fetched) {
    var n = lane;
    var to = 0u;
    @repeat i ROW_LOADS
    n = lane + @iu * WG;
    to = (buffer * ROWS + n / (8u * UNITS_AT_ONCE)) * PITCH + n % (8u * UNITS_AT_ONCE);
    tile_rows[to] = next.quads[@i];
    @end
    @repeat i UNIT_LOADS
    n = lane + @iu * WG;
    if (n < OUTS * UNITS_AT_ONCE) {
        to = (buffer * OUTS + n / UNITS_AT_ONCE) * PITCH + 8u * (n % UNITS_AT_ONCE);
        @repeat k EIGHT
        tile_outs[to + @ku] = quad_of(weights_quad(next.units[@i], @ku));
        @end
    }
    @end
}

// What the groups that share an output's columns made of it, added up in their order.
fn total(at: u32) -> f32 {
    var sum = 0.0;
    for (var part = 0u; part < ACROSS_COLUMNS; part++) {
        sum += blocks[part * ACROSS_ROWS * ACROSS_OUTS * 256u + at];
    }
    return sum;
}

// What becomes of block i, j of every group.
fn finish_block(lane: u32, tile: Tile, first_out: u32, i: u32, j: u32) {
    const SIDE: u32 = ACROSS_OUTS / HALVES;
    for (var e = lane; e < ACROSS_ROWS * SIDE * 256u; e += WG) {
        let group_row = e / 256u / SIDE;
        let group_out = e / 256u % SIDE;
        let row = (group_row * ROW_BLOCKS + i) * 16u + e / 16u % 16u;
        let out = first_out + (group_out * OUT_BLOCKS + j) * 16u + e % 16u;
        if (row < tile.count && out < N_OUT) {
            let at = (group_row * ACROSS_OUTS + group_out) * 256u + e % 256u;
            let inverse = inverses[made_row(tile, row)];
            var second = 0.0;
            if (HALVES == 2u) {
                second = total(at + SIDE * 256u) * inverse;
            }
            finish_row(tile, row, out, total(at) * inverse, second);
        }
    }
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    $GROUP_INPUT
) {
    $SKIPPED
    let tile = tile_at(wg.x);
    let first_out = wg.y * TILE_OUTS;
    // Which part of the columns, which rows and which outputs of the tile are this lane's group's.
    let group = $GROUP;
    let share = group / (ACROSS_ROWS * ACROSS_OUTS) * (8u * UNITS_AT_ONCE / ACROSS_COLUMNS);
    let rows_at = group / ACROSS_OUTS % ACROSS_ROWS * ROW_BLOCKS * 16u;
    let outs_at = group % ACROSS_OUTS * OUT_BLOCKS * 16u;
    $SUMS
    var next = fetched(lane, tile, first_out, 0u);
    for (var step = 0u; step < STEPS; step++) {
        let buffer = step % BUFFERS;
        if (BUFFERS == 1u) {
            workgroupBarrier();
        }
        put(lane, buffer, next);
        workgroupBarrier();
        if (step + 1u < STEPS) {
            next = fetched(lane, tile, first_out, step + 1u);
        }
        let rows_from = (buffer * ROWS + rows_at) * PITCH + share;
        let outs_from = (buffer * OUTS + outs_at) * PITCH + share;
        $MULTIPLY
    }
    let block = group * 256u;
    @repeat i ROW_BLOCKS
    @repeat j OUT_BLOCKS
    workgroupBarrier();
    $STORE
    workgroupBarrier();
    finish_block(lane, tile, first_out, @iu, @ju);
    @end
    @end
}
