// A tile of rows that lie behind one another, and of the rows of one matrix.

struct Tile {
    first: u32,
    count: u32,
}

fn tile_at(i: u32) -> Tile {
    return Tile(i * ROWS, min(ROWS, all_rows() - i * ROWS));
}

fn made_row(tile: Tile, row: u32) -> u32 {
    return tile.first + row;
}

alias Weights = Unit;

fn weights_of(tile: Tile, out: u32, is_second: bool, unit: u32) -> Weights {
    return unit_of((out + select(0u, N_OUT, is_second)) * STRIDE, unit);
}

fn weights_quad(unit: Weights, k: u32) -> vec4<f32> {
    return quad(unit, k);
}

fn finish_row(tile: Tile, row: u32, out: u32, first: f32, second: f32) {
    finish(tile.first + row, FIRST_OUT + out, first, second);
}
