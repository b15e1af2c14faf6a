// Outputs of some rows: see grouped.rs.

const SUBS: u32 = WG / LANES;
const SUMS: u32 = OUTS * TILE;

// A matrix: its first workgroup, where its columns begin in a row, where it lies in vectors, where its outputs and biases begin.
struct Part {
    number: u32, kind: u32, first_group: u32, outs: u32, columns: u32, x_at: u32, at: u32, y_at: u32, bias_at: u32
}

var<workgroup> sums: array<f32, SUMS * WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_row = wg.y * TILE;
    let count = min(TILE, batch_rows() - first_row);
    let part = part_of(wg.x);
    let first_out = (wg.x - part.first_group) * SUBS * OUTS;
    add_up(part, lane, first_out + lane / LANES * OUTS, first_row, count);
    workgroupBarrier();
    for (var i = lane; i < SUBS * SUMS; i += WG) {
        let out = first_out + i / TILE;
        let t = i % TILE;
        if (out < part.outs && t < count) {
            let sub = i / SUMS;
            let s = i % SUMS;
            var sum = 0.0;
            for (var l = 0u; l < LANES; l++) {
                sum += sums[s * WG + sub * LANES + l];
            }
            leave(part, first_row + t, out, sum);
        }
    }
}

// In the order of the columns.
fn with_products(w: vec4<f32>, x: vec4<f32>, before: f32) -> f32 {
    return fma(w.w, x.w, fma(w.z, x.z, fma(w.y, x.y, fma(w.x, x.x, before))));
}
