// The weight of all tokens of a row, and the one at which the sum of their weights, in the order of their numbers, exceeds a share
// of it.

var<workgroup> place: u32;
var<workgroup> left: Long;
var<workgroup> token_drawn: vec2<u32>;

// Finds the block in which the sum exceeds the target, and what is left of the target there.
fn find_block(lane: u32, row: u32, bits: Long) -> Long {
    let count = asked_blocks();
    let first = row * count;
    // Neighbours are a lane's.
    let each = (count + WG - 1u) / WG;
    var own = Long(0u, 0u);
    for (var i = 0u; i < each; i++) {
        if (lane * each + i < count) {
            own = plus(own, weights[first + lane * each + i]);
        }
    }
    let sum = summed(lane, own);
    let total = sums[WG - 1u];
    let goal = share_of(total, bits);
    let before = minus(sum, own);
    if (is_less(goal, sum) && !is_less(goal, before)) {
        var rest = minus(goal, before);
        for (var i = 0u; i < each; i++) {
            let block = lane * each + i;
            if (block < count && place == NONE) {
                let weight = weights[first + block];
                if (is_less(rest, weight)) {
                    place = block;
                    left = rest;
                }
                rest = minus(rest, weight);
            }
        }
    }
    return total;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let request = asked_plainly() + wg.x;
    let to = wg.x * RECORD;
    if (lane == 0u) {
        place = NONE;
        token_drawn = vec2<u32>(NONE, NEVER);
    }
    workgroupBarrier();
    let total = find_block(lane, wg.x, Long(asked(request, 4u), asked(request, 5u)));
    let block = workgroupUniformLoad(&place);
    let goal = workgroupUniformLoad(&left);
    let greatest = widened(bits_of(drawn[to + 1u]));
    let scale = wide_of_words(asked(request, 2u), asked(request, 3u));
    let token = block * BLOCK + lane;
    var own = Long(0u, 0u);
    var rank = NEVER;
    if (block != NONE && lane < BLOCK && token < asked(request, 1u)) {
        let bits = logits[asked(request, 0u) + token];
        rank = rank_of(bits);
        own = weight_of(bits, greatest, scale);
    }
    let sum = summed(lane, own);
    if (is_less(goal, sum) && !is_less(goal, minus(sum, own))) {
        token_drawn = vec2<u32>(token, rank);
    }
    let one = workgroupUniformLoad(&token_drawn);
    if (lane == 0u) {
        drawn[to + 4u] = total.x;
        drawn[to + 5u] = total.y;
        drawn[to + 6u] = one.x;
        drawn[to + 7u] = one.y;
    }
}
