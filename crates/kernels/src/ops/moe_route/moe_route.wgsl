// A workgroup norms a row, scores all experts and chooses the best; among equals the lower number.

var<workgroup> scores: array<f32, EXPERTS>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.x;
    let s = statistics(lane, row);
    for (var i = lane; i < X_COLUMNS; i += WG) {
        normed_row[row * X_COLUMNS + i] = column(row, s, i);
    }
    for (var e = lane; e < EXPERTS; e += WG) {
        // Four sums, so that each rounds less.
        var sum = vec4<f32>(0.0);
        for (var g = 0u; g < UNITS; g++) {
            let u = unit_of(e * STRIDE, g);
            for (var k = 0u; k < 8u; k++) {
                sum = fma(quad(u, k), input_quad(row, s, 32u * g + 4u * k), sum);
            }
        }
        scores[e] = (sum.x + sum.y) + (sum.z + sum.w);
    }
    workgroupBarrier();
    if (lane > 0u) {
        return;
    }
    let at = row * 2u * TOP_K;
    var total = 0.0;
    var largest = -3e38;
    for (var k = 0u; k < TOP_K; k++) {
        var best = EXPERTS;
        for (var e = 0u; e < EXPERTS; e++) {
            // Those chosen before are set to less than any score.
            if (scores[e] > -3e38 && (best == EXPERTS || scores[e] > scores[best])) {
                best = e;
            }
        }
        // Where scores are no numbers none is better than another.
        best = min(best, EXPERTS - 1u);
        if (k == 0u) {
            largest = scores[best];
            if (!RENORMALIZE) {
                for (var e = 0u; e < EXPERTS; e++) {
                    total += exp_(scores[e] - largest);
                }
            }
        }
        let weight = exp_(scores[best] - largest);
        routes[at + k] = f32(best);
        routes[at + TOP_K + k] = weight;
        if (RENORMALIZE) {
            total += weight;
        }
        scores[best] = -3.4e38;
    }
    for (var k = 0u; k < TOP_K; k++) {
        routes[at + TOP_K + k] = routes[at + TOP_K + k] / total;
    }
}
