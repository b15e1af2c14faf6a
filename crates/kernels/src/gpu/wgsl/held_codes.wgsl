// Rounded rows that a workgroup makes for itself: CHUNK units at a time.

var<workgroup> held_low: array<vec4<u32>, CHUNK * TILE>;
var<workgroup> held_high: array<vec4<u32>, CHUNK * TILE>;
var<workgroup> held_scales: array<vec2<u32>, CHUNK * TILE>;

fn hold(lane: u32, t: u32, row: u32, s: vec2<f32>, start: u32) {
    let quads = 8u * min(CHUNK, STEPS - start);
    for (var first = 0u; first < quads; first += WG) {
        let i = first + lane;
        let r = rounded(filled_quad(row, s, 8u * start + i));
        if (i < quads) {
            let at = t * CHUNK + i / 8u;
            if ((i & 4u) == 0u) {
                held_low[at][i & 3u] = r.word;
            } else {
                held_high[at][i & 3u] = r.word;
            }
            if ((i & 7u) == 0u) {
                held_scales[at] = vec2<u32>(bitcast<u32>(r.scale * factor(row, start + i / 8u)), r.sums);
            }
        }
    }
}

fn activations(t: u32, row: u32, g: u32, start: u32) -> Activations {
    let at = t * CHUNK + g - start;
    return unit_of_codes(held_low[at], held_high[at], held_scales[at]);
}
