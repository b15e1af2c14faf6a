// The best of each block of a row's logits.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let token = wg.x * WG + lane;
    var rank = NEVER;
    if (token < asked(wg.y, 1u)) {
        rank = rank_of(logits[asked(wg.y, 0u) + token]);
    }
    let best = best_of(lane, rank, token);
    if (lane == 0u) {
        blocks[wg.y * asked_blocks() + wg.x] = best;
    }
}
