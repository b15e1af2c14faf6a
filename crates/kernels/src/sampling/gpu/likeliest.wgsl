// The best of a row's blocks: the greatest of its logits, the lowest token of equals; NONE where one is no number or +∞, or all
// are −∞. For rows that are asked for more, how likely a token must be to be listed.

var<workgroup> bins: array<atomic<u32>, WG>;
var<workgroup> found: vec2<u32>;

// The rank that so many blocks reach, of those from `first` on.
fn rank_of_some(lane: u32, first: u32) -> u32 {
    var begin = 0u;
    let count = asked_blocks();
    var wanted = min(FEWEST, count);
    for (var shift = 32u; shift > 0u; shift = shift - 8u) {
        let digit = shift - 8u;
        atomicStore(&bins[lane], 0u);
        workgroupBarrier();
        for (var i = lane; i < count; i += WG) {
            let rank = blocks[first + i].x;
            if (shift == 32u || (rank >> (shift & 31u)) == begin) {
                // The greatest come first.
                atomicAdd(&bins[255u - ((rank >> digit) & 255u)], 1u);
            }
        }
        workgroupBarrier();
        let own = atomicLoad(&bins[lane]);
        let sum = summed(lane, Long(own, 0u)).x;
        if (sum >= wanted && sum - own < wanted) {
            found = vec2<u32>(255u - lane, sum - own);
        }
        let here = workgroupUniformLoad(&found);
        begin = (begin << 8u) | here.x;
        wanted = wanted - here.y;
    }
    return begin;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let count = asked_blocks();
    let first = wg.x * count;
    var rank = NEVER;
    var token = NONE;
    for (var i = lane; i < count; i += WG) {
        let block = blocks[first + i];
        if (block.x > rank) {
            rank = block.x;
            token = block.y;
        }
    }
    let best = best_of(lane, rank, token);
    let likeliest = select(best.y, NONE, best.x == WRONG || best.x == NEVER);
    let plain = asked_plainly();
    if (wg.x < plain) {
        if (lane == 0u) {
            chosen[wg.x] = likeliest;
        }
    } else {
        var least = max(rank_of_some(lane, first), NEVER + 1u);
        if (asked(wg.x, 1u) <= LIST) {
            least = NEVER + 1u;
        }
        if (lane == 0u) {
            let to = (wg.x - plain) * RECORD;
            drawn[to] = likeliest;
            drawn[to + 1u] = best.x;
            drawn[to + 2u] = least;
            drawn[to + 3u] = 0u;
            drawn[to + 8u] = NEVER;
        }
    }
}
