// A row of the table for the token of every row, if this piece of the table has it.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.x;
    let token = token_of(row);
    if (token < FIRST || token >= END) {
        return;
    }
    let at = (token - FIRST) * STRIDE;
    for (var q = lane; q < UNITS * 8u; q += WG) {
        let v = fma(quad(unit_of(at, q / 8u), q % 8u), vec4<f32>(SCALE), learned(row, q));
        for (var c = 0u; c < 4u; c++) {
            if (4u * q + c < WIDTH) {
                y[row * WIDTH + 4u * q + c] = v[c];
            }
        }
    }
    if (IS_NORMED) {
        storageBarrier();
        workgroupBarrier();
        let s = statistics(lane, row);
        for (var i = lane; i < WIDTH; i += WG) {
            y[row * WIDTH + i] = normed(raw_at(row, i), s, i);
        }
    }
}
