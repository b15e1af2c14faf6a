// Makes rows ready once for all that multiply them: `keep(to, i, v)` stores quad `i` of the row that is kept as number `to`.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) width: u32, @builtin(subgroup_invocation_id) inside: u32) {
    let lane = subgroup * width + inside;
    let row = input_row(wg.x);
    let s = statistics(lane, row);
    for (var round = 0u; round < ROUNDS; round++) {
        let i = (wg.y * ROUNDS + round) * WG + lane;
        keep(wg.x, i, input_quad(row, s, i));
    }
}
