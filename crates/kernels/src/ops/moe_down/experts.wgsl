// What the kernels of experts share.

var<workgroup> shares: array<f32, WG>;

// The sum over the SHARE lanes that make an output, in their order; for the first of them.
fn shared_sum(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    shares[lane] = value;
    workgroupBarrier();
    var sum = 0.0;
    if (lane % SHARE == 0u) {
        for (var l = 0u; l < SHARE; l++) {
            sum += shares[lane + l];
        }
    }
    return sum;
}

fn chained(w: vec4<f32>, v: vec4<f32>, sum: f32) -> f32 {
    return fma(w.w, v.w, fma(w.z, v.z, fma(w.y, v.y, fma(w.x, v.x, sum))));
}

// Columns i to i + 3 of the row at `at`, zero past its end.
fn x_quad(at: u32, i: u32) -> vec4<f32> {
    var v: vec4<f32>;
    for (var c = 0u; c < 4u; c++) {
        if (i + c < N_IN) {
            v[c] = x[at + i + c];
        }
    }
    return v;
}
