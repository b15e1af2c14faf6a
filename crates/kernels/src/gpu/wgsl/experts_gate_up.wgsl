// Gates and ups, which may be of different types.

struct Weights {
    gate: g_Unit,
    up: u_Unit,
    is_up: bool,
}

fn weights_of(tile: Tile, out: u32, is_second: bool, unit: u32) -> Weights {
    var weights: Weights;
    weights.is_up = is_second;
    let row = row_here(tile, out);
    if (is_second) {
        weights.up = u_unit_of((row - U_FIRST) * U_STRIDE, unit);
    } else {
        weights.gate = g_unit_of((row - G_FIRST) * G_STRIDE, unit);
    }
    return weights;
}

fn weights_quad(weights: Weights, k: u32) -> vec4<f32> {
    if (weights.is_up) {
        return u_quad(weights.up, k);
    }
    return g_quad(weights.gate, k);
}
