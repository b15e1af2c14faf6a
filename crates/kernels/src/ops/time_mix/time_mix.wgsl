// A workgroup takes a head of a span through its rows, one after another. Lane l keeps line l (and l + WG, ...) of the head's
// state, a line for each value, from the first row to the last. What comes of the next row is read while this one is worked on.

struct Inputs { r: f32, k: f32, v: f32, w: f32, a: f32, g: f32, v_first: f32, mix: f32 }
struct Constants { k_k: f32, k_a: f32, r_k: f32, weight: f32, bias: f32 }

var<workgroup> kk: array<vec4<f32>, QUADS>;
var<workgroup> rate: array<vec4<f32>, QUADS>;
var<workgroup> key: array<vec4<f32>, QUADS>;
var<workgroup> decay: array<vec4<f32>, QUADS>;
var<workgroup> receptance: array<vec4<f32>, QUADS>;
var<workgroup> bonus: array<vec4<f32>, QUADS>;
var<workgroup> outs: array<vec4<f32>, QUADS>;

// The lane's lines.
@repeat l LINES
@repeat i QUADS
var<private> line@l_@i: vec4<f32>;
@end
@end

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = wg.x * SIZE;
    let span = span_at(wg.y);
    let end = span.first_row + span.rows;
    let state_at = (span.slot * WIDTH + first) * SIZE;
    @repeat l LINES
    let own@l = lane + @lu * WG;
    let kept@l = constants_of(first, own@l);
    var next@l = inputs_of(span.first_row, first, own@l);
    @end
    take_state(lane, state_at, span.start > 0u);
    for (var row = span.first_row; row < end; row++) {
        @repeat l LINES
        let now@l = next@l;
        if (row + 1u < end) {
            next@l = inputs_of(row + 1u, first, own@l);
        }
        prepare(own@l, now@l, kept@l);
        var removed@l = vec4<f32>(0.0);
        @end
        workgroupBarrier();
        var squares = vec4<f32>(0.0);
        var bonuses = vec4<f32>(0.0);
        @repeat i QUADS
        let kk@i = kk[@i];
        squares = fma(kk@i, kk@i, squares);
        bonuses += bonus[@i];
        @repeat l LINES
        removed@l = fma(line@l_@i, kk@i, removed@l);
        @end
        @end
        let length = max(sqrt(sum_of(squares)), 1e-12);
        @repeat l LINES
        // Both of the products that it is part of are with the key of length 1.
        let gone@l = vec4<f32>(sum_of(removed@l) / (length * length));
        let value@l = value_of(now@l);
        var out@l = vec4<f32>(0.0);
        @repeat i QUADS
        line@l_@i = fma(vec4<f32>(value@l), key[@i], fma(line@l_@i, decay[@i], -(rate[@i] * gone@l)));
        out@l = fma(line@l_@i, receptance[@i], out@l);
        @end
        let made@l = sum_of(out@l);
        if (own@l < 4u * QUADS) {
            outs[own@l / 4u][own@l % 4u] = select(0.0, made@l, own@l < SIZE);
        }
        @end
        workgroupBarrier();
        let norm = statistics();
        @repeat l LINES
        if (own@l < SIZE) {
            let normed = fma((made@l - norm.x) * norm.y, kept@l.weight, kept@l.bias);
            y[row * WIDTH + first + own@l] = fma(sum_of(bonuses), value@l, normed) * now@l.g;
            if (IS_FIRST) {
                v_first[row * WIDTH + first + own@l] = value@l;
            }
        }
        @end
    }
    keep_state(lane, state_at);
}

// A span that begins finds nothing.
fn take_state(lane: u32, at: u32, is_there: bool) {
    @repeat l LINES
    @repeat i QUADS
    line@l_@i = vec4<f32>(0.0);
    @end
    if (lane + @lu * WG < SIZE && is_there) {
        @repeat i QUADS
        line@l_@i = state_quad(at + (lane + @lu * WG) * SIZE, @iu);
        @end
    }
    @end
}

fn keep_state(lane: u32, at: u32) {
    @repeat l LINES
    if (lane + @lu * WG < SIZE) {
        @repeat i QUADS
        keep_quad(at + (lane + @lu * WG) * SIZE, @iu, line@l_@i);
        @end
    }
    @end
}

fn sum_of(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

// Of an element of the head; nothing where there is none.
fn constants_of(first: u32, i: u32) -> Constants {
    if (i >= SIZE) {
        return Constants(0.0, 0.0, 0.0, 0.0, 0.0);
    }
    let at = first + i;
    var bias = 0.0;
    if (HAS_BIAS) {
        bias = vectors[4u * WIDTH + at];
    }
    return Constants(vectors[at], vectors[WIDTH + at], vectors[2u * WIDTH + at], vectors[3u * WIDTH + at], bias);
}

fn inputs_of(row: u32, first: u32, i: u32) -> Inputs {
    if (i >= SIZE) {
        return Inputs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    }
    let x = row * 3u * WIDTH + first + i;
    let w = row * WAGV_WIDTH + first + i;
    var before = 0.0;
    var mix = 0.0;
    if (!IS_FIRST) {
        before = v_first[row * WIDTH + first + i];
        mix = wagv[w + 3u * WIDTH];
    }
    return Inputs(
        rkv[x], rkv[x + WIDTH], rkv[x + 2u * WIDTH], wagv[w], wagv[w + WIDTH], wagv[w + 2u * WIDTH], before, mix);
}

// What all lanes need of an element of a row.
fn prepare(i: u32, now: Inputs, kept: Constants) {
    if (i >= 4u * QUADS) {
        return;
    }
    let q = i / 4u;
    let c = i % 4u;
    let own = now.k * kept.k_k;
    let replaced = now.k * fma(now.a - 1.0, kept.k_a, 1.0);
    kk[q][c] = own;
    rate[q][c] = own * now.a;
    key[q][c] = replaced;
    decay[q][c] = exp_(DECAY * sigmoid_(now.w));
    receptance[q][c] = now.r;
    bonus[q][c] = now.r * replaced * kept.r_k;
}

// The row's mean and the inverse of its deviation.
fn statistics() -> vec2<f32> {
    var sum = vec4<f32>(0.0);
    for (var i = 0u; i < QUADS; i++) {
        sum += outs[i];
    }
    let mean = sum_of(sum) / f32(SIZE);
    var squares = vec4<f32>(0.0);
    for (var i = 0u; i < QUADS; i++) {
        let is_there = vec4<u32>(4u * i, 4u * i + 1u, 4u * i + 2u, 4u * i + 3u) < vec4<u32>(SIZE);
        let d = select(vec4<f32>(0.0), outs[i] - mean, is_there);
        squares = fma(d, d, squares);
    }
    return vec2<f32>(mean, 1.0 / sqrt(sum_of(squares) / f32(SIZE) + EPS));
}

// A value, mixed with the first layer's.
fn value_of(now: Inputs) -> f32 {
    if (IS_FIRST) {
        return now.v;
    }
    return fma(now.v_first - now.v, now.mix, now.v);
}
