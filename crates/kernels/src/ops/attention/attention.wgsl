// A workgroup for a row's head. It goes through the positions in runs of WG that begin at multiples of WG, whatever the row, so
// that a row's sums depend on nothing else in the step. The largest score so far, the sum of the weights and the weighted values
// are kept to one scale on the way.

var<workgroup> query: array<f32, DIM + 1u>;
var<workgroup> weights: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = wg.x;
    let row = wg.y;
    let kv_head = head * KV_HEADS / HEADS;
    let position = position_of(row);
    let table_at = span_at(span_number(row)).table_at;
    var first = 0u;
    if (position >= WINDOW) {
        first = position + 1u - WINDOW;
    }
    for (var i = lane; i < DIM; i += WG) {
        query[i] = qkv[row * WIDTH + head * DIM + i];
    }
    if (lane == 0u) {
        query[DIM] = 0.0;
    }
    workgroupBarrier();
    var largest = sink_of(head);
    var total = select(0.0, 1.0, HAS_SINK);
    var held: array<f32, HELD>;
    for (var base = first / WG * WG; base <= position; base += WG) {
        let p = base + lane;
        let is_seen = p >= first && p <= position;
        var score = -3e38;
        if (is_seen) {
            let block = block_tables[table_at + p / 16u];
            let dot = score_of(((block * KV_HEADS + kv_head) * 16u + p % 16u) * KV_WORDS);
            score = capped(dot * SCALE);
        }
        let before = largest;
        largest = max(largest, group_max(lane, score));
        let kept = exp_(before - largest);
        let weight = select(0.0, exp_(score - largest), is_seen);
        weights[lane] = weight;
        // The sum also waits until all weights are there.
        total = fma(total, kept, group_sum(lane, weight));
        for (var h = 0u; h < HELD; h++) {
            let i = lane + h * WG;
            if (i < DIM) {
                held[h] = held[h] * kept;
                let end = min(position + 1u - base, WG);
                for (var j = 0u; j < end; j++) {
                    let q = base + j;
                    if (q >= first) {
                        let block = block_tables[table_at + q / 16u];
                        let at = ((block * KV_HEADS + kv_head) * 16u + q % 16u) * KV_WORDS;
                        held[h] = fma(weights[j], value_at(at, i), held[h]);
                    }
                }
            }
        }
        workgroupBarrier();
    }
    for (var h = 0u; h < HELD; h++) {
        let i = lane + h * WG;
        if (i < DIM) {
            y[(row * HEADS + head) * DIM + i] = held[h] / total;
        }
    }
}
