// Outputs wg.x * SUBS * OUTS ... of the rows wg.y * TILE ...: see linear.rs.

const SUBS: u32 = WG / LANES;
// Sums that a lane keeps.
const SUMS: u32 = OUTS * HALVES * TILE;

var<workgroup> sums: array<f32, SUMS * WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_row = wg.y * TILE;
    let count = min(TILE, input_rows() - first_row);
    var rows: array<u32, TILE>;
    var stats: array<vec2<f32>, TILE>;
    for (var t = 0u; t < TILE; t++) {
        rows[t] = input_row(first_row + min(t, count - 1u));
        stats[t] = statistics(lane, rows[t]);
    }
    let first_out = (wg.x * SUBS + lane / LANES) * OUTS;
    var acc: array<f32, SUMS>;
    for (var g = lane % LANES; g < UNITS; g += LANES) {
        for (var o = 0u; o < OUTS * HALVES; o++) {
            let out = min(first_out + o / HALVES, N_OUT - 1u) + (o % HALVES) * N_OUT;
            let u = unit_of(out * STRIDE, g);
            for (var k = 0u; k < 8u; k++) {
                let w = quad(u, k);
                for (var t = 0u; t < TILE; t++) {
                    let v = input_quad(rows[t], stats[t], g * 32u + 4u * k);
                    var a = acc[o * TILE + t];
                    a = fma(w.x, v.x, a);
                    a = fma(w.y, v.y, a);
                    a = fma(w.z, v.z, a);
                    acc[o * TILE + t] = fma(w.w, v.w, a);
                }
            }
        }
    }
    for (var s = 0u; s < SUMS; s++) {
        sums[s * WG + lane] = acc[s];
    }
    workgroupBarrier();
    for (var i = lane; i < SUBS * OUTS * TILE; i += WG) {
        let sub = i / (OUTS * TILE);
        let o = (i / TILE) % OUTS;
        let t = i % TILE;
        let out = (wg.x * SUBS + sub) * OUTS + o;
        if (out < N_OUT && t < count) {
            let first = sum_of(o * HALVES, t, sub);
            var second = 0.0;
            if (HALVES == 2u) {
                second = sum_of(o * HALVES + HALVES - 1u, t, sub);
            }
            finish(first_row + t, FIRST_OUT + out, first, second);
        }
    }
}

// What the lanes of `sub` made of an output, added up in their order.
fn sum_of(o: u32, t: u32, sub: u32) -> f32 {
    let at = (o * TILE + t) * WG + sub * LANES;
    var sum = 0.0;
    for (var l = 0u; l < LANES; l++) {
        sum += sums[at + l];
    }
    return sum;
}
