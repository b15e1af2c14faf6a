// Rounds rows once for all that multiply them; laid out as kept_codes.wgsl reads them.

const KEPT: u32 = 4u * (2u * STEPS + (STEPS + 1u) / 2u);

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) width: u32, @builtin(subgroup_invocation_id) inside: u32) {
    let lane = subgroup * width + inside;
    let row = input_row(wg.x);
    let s = statistics(lane, row);
    for (var round = 0u; round < ROUNDS; round++) {
        let i = (wg.y * ROUNDS + round) * WG + lane;
        let r = rounded(input_quad(row, s, i));
        if (i < 8u * STEPS) {
            let g = i / 8u;
            kept[wg.x * KEPT + 4u * (select(0u, STEPS, (i & 4u) != 0u) + g) + (i & 3u)] = r.word;
            if ((i & 7u) == 0u) {
                let at = wg.x * KEPT + 8u * STEPS + 2u * g;
                kept[at] = bitcast<u32>(r.scale);
                kept[at + 1u] = r.sums;
            }
        }
    }
}
