// A tile of pairs of a row and an expert, all of one expert, and of the rows of its matrix.

struct Tile {
    first: u32,
    count: u32,
    expert: u32,
}

fn tile_at(i: u32) -> Tile {
    return Tile(order[3u * i], order[3u * i + 1u], order[3u * i + 2u]);
}

fn pair_at(tile: Tile, row: u32) -> u32 {
    return order[PAIRS_AT + tile.first + row];
}

fn made_row(tile: Tile, row: u32) -> u32 {
    return pair_at(tile, row) / PAIRS_OF_ROW;
}

// The row of the weights, if this piece of them has it; otherwise one that it has, whose products nobody takes.
fn row_here(tile: Tile, out: u32) -> u32 {
    return clamp(tile.expert * N_OUT + out, FIRST, END - 1u);
}

fn finish_row(tile: Tile, row: u32, out: u32, first: f32, second: f32) {
    if (row_here(tile, out) == tile.expert * N_OUT + out) {
        y[pair_at(tile, row) * N_OUT + out] = finished(first, second);
    }
}
