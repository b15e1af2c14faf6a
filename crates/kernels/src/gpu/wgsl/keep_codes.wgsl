// Rounds rows; laid out as kept_codes.wgsl reads them.

const KEPT: u32 = 4u * (2u * STEPS + (STEPS + 1u) / 2u);

fn keep(to: u32, i: u32, v: vec4<f32>) {
    // Lanes round together, also those past the end.
    let r = rounded(v);
    if (i < 8u * STEPS) {
        let g = i / 8u;
        kept[to * KEPT + 4u * (select(0u, STEPS, (i & 4u) != 0u) + g) + (i & 3u)] = r.word;
        if ((i & 7u) == 0u) {
            let at = to * KEPT + 8u * STEPS + 2u * g;
            kept[at] = bitcast<u32>(r.scale);
            kept[at + 1u] = r.sums;
        }
    }
}
