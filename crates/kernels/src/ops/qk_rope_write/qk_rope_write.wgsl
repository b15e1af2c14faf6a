// A workgroup for a row and one of its heads, those of Q before those of K; that of a K head writes the V head of its number, too.

// The head as it is when it is turned: lanes put elements of others into the cache.
var<workgroup> turned: array<f32, DIM + 1u>;

fn normed_at(row: u32, s: vec2<f32>, i: u32) -> f32 {
    if (head < HEADS) {
        return q_normed(raw_at(row, i), s, i);
    }
    return k_normed(raw_at(row, i), s, i);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    head = wg.x;
    let row = wg.y;
    var s: vec2<f32>;
    if (wg.x < HEADS) {
        s = q_statistics(lane, row);
    } else {
        s = k_statistics(lane, row);
    }
    let at = row * WIDTH + head * DIM;
    // A lane reads and writes the two elements of a pair, so that none is rotated twice.
    for (var i = lane; i < PAIRS; i += WG) {
        let a = select(2u * i, i, IN_HALVES);
        let b = select(2u * i + 1u, i + PAIRS, IN_HALVES);
        let x = normed_at(row, s, a);
        let y = normed_at(row, s, b);
        let c = cos_sin(row, i);
        put(at, a, fma(x, c.x, -(y * c.y)));
        put(at, b, fma(x, c.y, y * c.x));
    }
    for (var i = 2u * PAIRS + lane; i < DIM; i += WG) {
        put(at, i, normed_at(row, s, i));
    }
    if (wg.x < HEADS) {
        return;
    }
    if (lane == 0u) {
        turned[DIM] = 0.0;
    }
    workgroupBarrier();
    let kv_head = wg.x - HEADS;
    let position = position_of(row);
    let block = block_tables[span_at(span_number(row)).table_at + position / 16u];
    let to = ((block * KV_HEADS + kv_head) * 16u + position % 16u) * KV_WORDS;
    let v_at = row * WIDTH + (HEADS + KV_HEADS + kv_head) * DIM;
    for (var w = lane; w < KV_WORDS; w += WG) {
        if (IS_HALF) {
            let has_two = 2u * w + 1u < DIM;
            let next = min(2u * w + 1u, DIM - 1u);
            keys[to + w] = halves_of(turned[2u * w], turned[2u * w + 1u]);
            values[to + w] = halves_of(qkv[v_at + 2u * w], select(0.0, qkv[v_at + next], has_two));
        } else {
            keys[to + w] = bitcast<u32>(turned[w]);
            values[to + w] = bitcast<u32>(qkv[v_at + w]);
        }
    }
}

fn put(at: u32, i: u32, value: f32) {
    qkv[at + i] = value;
    turned[i] = value;
}
