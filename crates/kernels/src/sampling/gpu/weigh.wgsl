// What a block of a row's tokens weighs together; the likely ones of them are listed, in any order.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let request = asked_plainly() + wg.y;
    let to = wg.y * RECORD;
    let greatest = widened(bits_of(atomicLoad(&drawn[to + 1u])));
    let least = atomicLoad(&drawn[to + 2u]);
    let scale = wide_of_words(asked(request, 2u), asked(request, 3u));
    let token = wg.x * WG + lane;
    var weight = Long(0u, 0u);
    if (token < asked(request, 1u)) {
        let bits = logits[asked(request, 0u) + token];
        let rank = rank_of(bits);
        weight = weight_of(bits, greatest, scale);
        if (token == asked(request, 6u)) {
            atomicStore(&drawn[to + 8u], rank);
        }
        if (rank >= least) {
            let at = atomicAdd(&drawn[to + 3u], 1u);
            if (at < LIST) {
                atomicStore(&drawn[to + HEAD + 2u * at], rank);
                atomicStore(&drawn[to + HEAD + 2u * at + 1u], token);
            }
        }
    }
    let sum = summed(lane, weight);
    if (lane == WG - 1u) {
        weights[wg.y * asked_blocks() + wg.x] = sum;
    }
}
