// What the experts of this piece made of a row, added up by weight in the order of its routes.

@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.y;
    let out = id.x;
    if (out >= N_OUT) {
        return;
    }
    var total = 0.0;
    for (var slot = 0u; slot < TOP_K; slot++) {
        let weight_row = u32(routes[row * 2u * TOP_K + slot]) * N_OUT + out;
        if (weight_row >= FIRST && weight_row < END) {
            total = fma(routes[row * 2u * TOP_K + TOP_K + slot], made[(row * TOP_K + slot) * N_OUT + out], total);
        }
    }
    y[row * N_OUT + out] += total;
}
