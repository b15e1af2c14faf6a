// The greatest of a row's logits, the lowest token of equals; NONE where one is no number or +∞, or all are −∞.

const NONE: u32 = 0xffffffffu;

var<workgroup> best_values: array<f32, WG>;
var<workgroup> best_tokens: array<u32, WG>;
var<workgroup> is_wrong: array<u32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let at = asked[2u * wg.x] * WIDTH;
    let vocab = asked[2u * wg.x + 1u];
    var value = 0.0;
    var token = NONE;
    var wrong = 0u;
    for (var i = lane; i < vocab; i += WG) {
        let bits = bitcast<u32>(logits[at + i]);
        // As bits, for a device may take it that there are no such floats.
        if ((bits & 0x7fffffffu) > 0x7f800000u || bits == 0x7f800000u) {
            wrong = 1u;
        } else if (bits != 0xff800000u && (token == NONE || logits[at + i] > value)) {
            value = logits[at + i];
            token = i;
        }
    }
    best_values[lane] = value;
    best_tokens[lane] = token;
    is_wrong[lane] = wrong;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step = step / 2u) {
        if (lane < step) {
            let other = lane + step;
            is_wrong[lane] = is_wrong[lane] | is_wrong[other];
            let better = best_values[other] > best_values[lane]
                || (best_values[other] == best_values[lane] && best_tokens[other] < best_tokens[lane]);
            if (best_tokens[other] != NONE && (best_tokens[lane] == NONE || better)) {
                best_values[lane] = best_values[other];
                best_tokens[lane] = best_tokens[other];
            }
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        chosen[wg.x] = select(best_tokens[0], NONE, is_wrong[0] == 1u);
    }
}
