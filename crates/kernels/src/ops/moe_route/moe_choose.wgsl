// A workgroup norms a row for its experts and chooses the best of their scores; among equals the lower number.

var<workgroup> keys: array<u32, EXPERTS>;
var<workgroup> chosen: array<u32, TOP_K>;
var<workgroup> weights: array<f32, TOP_K>;

// The larger the better; what is no number is worse than any number.
fn key_of(score: f32) -> u32 {
    if (is_no_number(score)) {
        return 0u;
    }
    let bits = bitcast<u32>(score);
    if ((bits << 1u) == 0u) {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

// How many experts are better than `e`.
fn rank_of(e: u32) -> u32 {
    let key = keys[e];
    var rank = 0u;
    for (var other = 0u; other < EXPERTS; other++) {
        let is_better = keys[other] > key || (keys[other] == key && other < e);
        rank += select(0u, 1u, is_better);
    }
    return rank;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) width: u32, @builtin(subgroup_invocation_id) inside: u32) {
    let lane = subgroup * width + inside;
    let row = wg.x;
    let first = row * EXPERTS;
    let s = statistics(lane, row);
    for (var i = lane; i < X_QUADS; i += WG) {
        let v = input_quad(row, s, i);
        for (var c = 0u; c < 4u && 4u * i + c < X_COLUMNS; c++) {
            normed_row[row * X_COLUMNS + 4u * i + c] = v[c];
        }
    }
    for (var e = lane; e < EXPERTS; e += WG) {
        keys[e] = key_of(scores[first + e]);
    }
    workgroupBarrier();
    for (var e = lane; e < EXPERTS; e += WG) {
        let rank = rank_of(e);
        if (rank < TOP_K) {
            chosen[rank] = e;
        }
    }
    workgroupBarrier();
    let largest = scores[first + chosen[0]];
    for (var k = lane; k < TOP_K; k += WG) {
        weights[k] = exp_(scores[first + chosen[k]] - largest);
    }
    var total = 0.0;
    if (!RENORMALIZE) {
        for (var e = lane; e < EXPERTS; e += WG) {
            total += exp_(scores[first + e] - largest);
        }
    }
    total = sum_of_all(lane, total);
    if (RENORMALIZE) {
        for (var k = 0u; k < TOP_K; k++) {
            total += weights[k];
        }
    }
    for (var k = lane; k < TOP_K; k += WG) {
        routes[2u * TOP_K * row + k] = f32(chosen[k]);
        routes[2u * TOP_K * row + TOP_K + k] = weights[k] / total;
    }
}
