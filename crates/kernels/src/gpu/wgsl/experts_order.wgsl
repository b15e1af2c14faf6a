// One workgroup sorts the step's pairs of a row and an expert by their experts, and cuts what each expert has into tiles. Which pair
// of an expert comes first may differ from run to run: what a row gets does not depend on it.

var<workgroup> counts: array<atomic<u32>, EXPERTS>;
var<workgroup> places: array<atomic<u32>, EXPERTS>;

fn expert_of(pair: u32) -> u32 {
    return min(u32(routes[pair / TOP_K * 2u * TOP_K + pair % TOP_K]), EXPERTS - 1u);
}

fn put_tile(i: u32, first: u32, count: u32, expert: u32) {
    order[3u * i] = first;
    order[3u * i + 1u] = count;
    order[3u * i + 2u] = expert;
}

// Tiles of the expert, and how many pairs and tiles those before it have.
fn put_tiles(expert: u32) {
    var first = 0u;
    var tile = 0u;
    for (var e = 0u; e < expert; e++) {
        let count = atomicLoad(&counts[e]);
        first += count;
        tile += (count + TILE - 1u) / TILE;
    }
    atomicStore(&places[expert], first);
    let count = atomicLoad(&counts[expert]);
    for (var done = 0u; done < count; done += TILE) {
        put_tile(tile + done / TILE, first + done, min(TILE, count - done), expert);
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(local_invocation_index) lane: u32) {
    for (var e = lane; e < EXPERTS; e += WG) {
        atomicStore(&counts[e], 0u);
    }
    workgroupBarrier();
    let pairs = batch_rows() * TOP_K;
    for (var pair = lane; pair < pairs; pair += WG) {
        atomicAdd(&counts[expert_of(pair)], 1u);
    }
    workgroupBarrier();
    var used = 0u;
    for (var e = 0u; e < EXPERTS; e++) {
        used += (atomicLoad(&counts[e]) + TILE - 1u) / TILE;
    }
    // As many tiles as there are workgroups for.
    for (var i = used + lane; i < pairs / TILE + min(EXPERTS, pairs); i += WG) {
        put_tile(i, 0u, 0u, 0u);
    }
    for (var e = lane; e < EXPERTS; e += WG) {
        put_tiles(e);
    }
    workgroupBarrier();
    for (var pair = lane; pair < pairs; pair += WG) {
        order[PAIRS_AT + atomicAdd(&places[expert_of(pair)], 1u)] = pair;
    }
}
