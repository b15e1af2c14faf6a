// A workgroup takes a head of a span through its rows, one after another. Lane l keeps lines l, l + WG, ... of the head's state,
// a line for each value.

var<workgroup> kk: array<f32, SIZE>;
var<workgroup> rate: array<f32, SIZE>;
var<workgroup> key: array<f32, SIZE>;
var<workgroup> decay: array<f32, SIZE>;
var<workgroup> receptance: array<f32, SIZE>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = wg.x * SIZE;
    let span = span_at(wg.y);
    let state_at = (span.slot * WIDTH + first) * SIZE;
    var lines: array<f32, LINES * SIZE>;
    for (var l = 0u; l < LINES; l++) {
        let value = lane + l * WG;
        for (var i = 0u; i < SIZE; i++) {
            lines[l * SIZE + i] = 0.0;
            if (value < SIZE && span.start > 0u) {
                lines[l * SIZE + i] = state[state_at + value * SIZE + i];
            }
        }
    }
    for (var row = span.first_row; row < span.first_row + span.rows; row++) {
        let x = row * 3u * WIDTH + first;
        let w = row * WAGV_WIDTH + first;
        let whole_bonus = prepare(lane, first, x, w);
        var outs: array<f32, LINES>;
        var vs: array<f32, LINES>;
        var sum = 0.0;
        for (var l = 0u; l < LINES; l++) {
            let value = lane + l * WG;
            if (value < SIZE) {
                vs[l] = value_of(row, x, w, first + value, value);
                var removed = 0.0;
                for (var i = 0u; i < SIZE; i++) {
                    removed = fma(lines[l * SIZE + i], kk[i], removed);
                }
                var out = 0.0;
                for (var i = 0u; i < SIZE; i++) {
                    let kept = fma(lines[l * SIZE + i], decay[i], -(removed * rate[i]));
                    lines[l * SIZE + i] = fma(vs[l], key[i], kept);
                    out = fma(lines[l * SIZE + i], receptance[i], out);
                }
                outs[l] = out;
                sum += out;
            }
        }
        let mean = group_sum(lane, sum) / f32(SIZE);
        var spread = 0.0;
        for (var l = 0u; l < LINES; l++) {
            if (lane + l * WG < SIZE) {
                spread = fma(outs[l] - mean, outs[l] - mean, spread);
            }
        }
        let scale = 1.0 / sqrt(group_sum(lane, spread) / f32(SIZE) + EPS);
        for (var l = 0u; l < LINES; l++) {
            let value = lane + l * WG;
            if (value < SIZE) {
                var bias = 0.0;
                if (HAS_BIAS) {
                    bias = vectors[4u * WIDTH + first + value];
                }
                let normed = fma((outs[l] - mean) * scale, vectors[3u * WIDTH + first + value], bias);
                y[row * WIDTH + first + value] = fma(whole_bonus, vs[l], normed) * wagv[w + 2u * WIDTH + value];
            }
        }
        workgroupBarrier();
    }
    for (var l = 0u; l < LINES; l++) {
        let value = lane + l * WG;
        if (value < SIZE) {
            for (var i = 0u; i < SIZE; i++) {
                state[state_at + value * SIZE + i] = lines[l * SIZE + i];
            }
        }
    }
}

// What all lanes need of a row; gives the bonus.
fn prepare(lane: u32, first: u32, x: u32, w: u32) -> f32 {
    var squares = 0.0;
    var bonus = 0.0;
    for (var i = lane; i < SIZE; i += WG) {
        let k = rkv[x + WIDTH + i];
        let a = wagv[w + WIDTH + i];
        kk[i] = k * vectors[first + i];
        squares = fma(kk[i], kk[i], squares);
        rate[i] = a;
        key[i] = k * fma(a - 1.0, vectors[WIDTH + first + i], 1.0);
        decay[i] = exp_(DECAY * sigmoid_(wagv[w + i]));
        receptance[i] = rkv[x + i];
        bonus = fma(receptance[i] * key[i], vectors[2u * WIDTH + first + i], bonus);
    }
    let length = max(sqrt(group_sum(lane, squares)), 1e-12);
    let whole_bonus = group_sum(lane, bonus);
    for (var i = lane; i < SIZE; i += WG) {
        kk[i] = kk[i] / length;
        rate[i] = kk[i] * rate[i];
    }
    workgroupBarrier();
    return whole_bonus;
}

// A value, mixed with the first layer's; the first layer leaves its own.
fn value_of(row: u32, x: u32, w: u32, column: u32, value: u32) -> f32 {
    let v = rkv[x + 2u * WIDTH + value];
    let at = row * WIDTH + column;
    if (IS_FIRST) {
        v_first[at] = v;
        return v;
    }
    return fma(v_first[at] - v, wagv[w + 3u * WIDTH + value], v);
}
