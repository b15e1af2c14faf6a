// SHARE lanes make the gate and the up of an output of an expert that a row visits.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.y;
    let slot = wg.z;
    let out = wg.x * (WG / SHARE) + lane / SHARE;
    let expert = u32(routes[row * 2u * TOP_K + slot]);
    let weight_row = expert * HIDDEN + min(out, HIDDEN - 1u);
    let is_here = out < HIDDEN && weight_row >= FIRST && weight_row < END;
    var gate = 0.0;
    var up = 0.0;
    if (is_here) {
        for (var g = lane % SHARE; g < UNITS; g += SHARE) {
            let gate_unit = g_unit_of((weight_row - G_FIRST) * G_STRIDE, g);
            let up_unit = u_unit_of((weight_row - U_FIRST) * U_STRIDE, g);
            for (var k = 0u; k < 8u; k++) {
                let v = x_quad(row * N_IN, 32u * g + 4u * k);
                gate = chained(g_quad(gate_unit, k), v, gate);
                up = chained(u_quad(up_unit, k), v, up);
            }
        }
    }
    let whole_gate = shared_sum(lane, gate);
    let whole_up = shared_sum(lane, up);
    if (is_here && lane % SHARE == 0u) {
        y[(row * TOP_K + slot) * HIDDEN + out] = gated(whole_gate, whole_up);
    }
}
