// A workgroup norms a row and rounds it to halves, times a power of two with which its largest value lies between 2^14 and 2^15:
// see rounding.rs. PARTS rows lie behind one another in what a row of the batch has.

var<workgroup> magnitudes: array<u32, WG>;

// As bits, in which what is no number is larger than any number.
fn largest_of(lane: u32, magnitude: u32) -> u32 {
    magnitudes[lane] = magnitude;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step = step / 2u) {
        if (lane < step) {
            magnitudes[lane] = max(magnitudes[lane], magnitudes[lane + step]);
        }
        workgroupBarrier();
    }
    return magnitudes[0];
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = input_row(wg.x) * PARTS + wg.y;
    let made = wg.x * PARTS + wg.y;
    let s = statistics(lane, row);
    var magnitude = 0u;
    for (var i = lane; i < X_COLUMNS; i += WG) {
        magnitude = max(magnitude, bitcast<u32>(column(row, s, i)) & 0x7fffffffu);
    }
    let largest = largest_of(lane, magnitude);
    var scale = 1.0;
    var inverse = 1.0;
    if (largest > 0u && largest < 0x7f800000u) {
        let exponent = max(largest >> 23u, 15u);
        scale = bitcast<f32>((268u - exponent) << 23u);
        inverse = bitcast<f32>((exponent - 14u) << 23u);
    }
    for (var q = lane; q < PREPARED; q += WG) {
        let v = input_quad(row, s, 4u * q) * scale;
        prepared[made * PREPARED + q] = vec2<u32>(halves_of(v.x, v.y), halves_of(v.z, v.w));
    }
    if (lane == 0u) {
        inverses[made] = inverse;
    }
}
