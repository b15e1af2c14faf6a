// The best of a row's blocks: the greatest of its logits, the lowest token of equals; NONE where one is no number or +∞, or all
// are −∞.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var rank = NEVER;
    var token = NONE;
    for (var i = lane; i < BLOCKS; i += WG) {
        let block = blocks[wg.x * BLOCKS + i];
        if (block.x > rank) {
            rank = block.x;
            token = block.y;
        }
    }
    let best = best_of(lane, rank, token);
    if (lane == 0u) {
        chosen[wg.x] = select(best.y, NONE, best.x == WRONG || best.x == NEVER);
    }
}
