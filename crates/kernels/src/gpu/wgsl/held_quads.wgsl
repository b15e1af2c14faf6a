// Normed rows that a workgroup makes for itself, CHUNK steps at a time; the quads of a step lie apart, so that lanes beside one
// another read what lies side by side.

var<workgroup> held: array<vec4<f32>, CHUNK * TILE * STEP_QUADS>;

fn hold(lane: u32, t: u32, row: u32, s: vec2<f32>, start: u32) {
    let quads = STEP_QUADS * min(CHUNK, STEPS - start);
    for (var i = lane; i < quads; i += WG) {
        let v = filled_quad(row, s, STEP_QUADS * start + i);
        let at = ((i % STEP_QUADS) * TILE + t) * CHUNK + i / STEP_QUADS;
        held[at] = v * factor(row, start + i / STEP_QUADS);
    }
}

fn activations(t: u32, row: u32, g: u32, start: u32) -> Activations {
    var a: Activations;
    for (var k = 0u; k < STEP_QUADS; k++) {
        a.v[k] = held[(k * TILE + t) * CHUNK + g - start];
    }
    return a;
}
