// SHARE lanes make an output of all experts that a row visits, in the order of its routes.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.y;
    let out = wg.x * (WG / SHARE) + lane / SHARE;
    var total = 0.0;
    for (var slot = 0u; slot < TOP_K; slot++) {
        let expert = u32(routes[row * 2u * TOP_K + slot]);
        let weight_row = expert * WIDTH + min(out, WIDTH - 1u);
        if (weight_row < FIRST || weight_row >= END) {
            continue;
        }
        var sum = 0.0;
        for (var g = lane % SHARE; g < UNITS; g += SHARE) {
            let u = unit_of((weight_row - FIRST) * STRIDE, g);
            for (var k = 0u; k < 8u; k++) {
                sum = chained(quad(u, k), x_quad((row * TOP_K + slot) * N_IN, 32u * g + 4u * k), sum);
            }
        }
        total = fma(routes[row * 2u * TOP_K + TOP_K + slot], sum, total);
    }
    let whole = shared_sum(lane, total);
    if (out < WIDTH && lane % SHARE == 0u) {
        y[row * WIDTH + out] += whole;
    }
}
