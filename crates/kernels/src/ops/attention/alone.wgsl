// A workgroup takes the heads of a row that share keys and values through a stretch of positions, or through all of them, stretch
// by stretch. 64 lanes, a team, take one of its portions: a lane scores a position, and then weighs two columns of the values.
// What the teams make is put together in their order by the first.

// Two columns of the values.
struct Columns { a: PerHead, b: PerHead }

// The positions of a stretch that are seen.
struct Seen { base: u32, first: u32, last: u32 }

const TEAMS: u32 = STRETCH / PORTION;
// Fours of a position's keys, and how far they lie apart: an odd number, so that lanes meet in no bank.
const K_STRIDE: u32 = K_FOURS | 1u;

var<workgroup> query: array<PerHead, 4u * FOURS>;
var<workgroup> staged: array<Four, STAGED>;
var<workgroup> places: array<u32, STRETCH / 16u>;
var<workgroup> weights: array<PerHead, STRETCH>;
var<workgroup> eighths: array<PerHead, TEAMS * 8u>;
var<workgroup> largests: array<PerHead, TEAMS>;
var<workgroup> shares: array<Shares, TEAMS>;
var<workgroup> columns: array<Columns, HELD * PORTION>;

// What is staged next: it is read while there is work to be done with what was staged before.
@repeat i LOADS
var<private> ahead@i: Granule;
@end

// What the lane has of a portion, a stretch, and all.
@repeat n HELD
var<private> of_portion@n: Columns;
var<private> of_stretch@n: Columns;
var<private> of_all@n: Columns;
@end

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let item = item_at(wg.y);
    let kv_head = wg.x / PARTS;
    let head = kv_head * GROUP + wg.x % PARTS * SHARE;
    let count = min(SHARE, (kv_head + 1u) * GROUP - head);
    let first = first_seen(item.position);
    let start = max(item.first, first / STRETCH);
    let end = item.first + item.count;
    if (start >= end) {
        return;
    }
    for (var i = lane; i < 4u * FOURS; i += WG) {
        query[i] = PerHead(0.0);
        if (i < DIM) {
            query[i] = query_of(item.row * WIDTH + head * DIM + i, count);
        }
    }
    var sum = Sum(sinks_of(head, count), PerHead(select(0.0, 1.0, HAS_SINK)));
    @repeat n HELD
    of_all@n = Columns(PerHead(0.0), PerHead(0.0));
    @end
    for (var s = start; s < end; s++) {
        let more = through_stretch(lane, kv_head, item.table_at, Seen(s * STRETCH, first, item.position));
        if (item.cell != NO_CELL) {
            leave_cell(lane, (item.cell * HEADS + head) * CELL, count, more);
            return;
        }
        let both = shares_of(sum.largest, more.largest);
        sum = joined_sum(sum, more, both);
        @repeat n HELD
        of_all@n = joined_columns(of_all@n, of_stretch@n, both);
        @end
    }
    if (lane < PORTION) {
        let whole = PerHead(1.0) / sum.total;
        let at = (item.row * HEADS + head) * DIM;
        @repeat n HELD
        let i@n = 2u * (lane + @nu * PORTION);
        if (i@n < DIM) {
            leave(at + i@n, count, of_all@n.a * whole);
        }
        if (i@n + 1u < DIM) {
            leave(at + i@n + 1u, count, of_all@n.b * whole);
        }
        @end
    }
}

fn joined_columns(before: Columns, more: Columns, both: Shares) -> Columns {
    return Columns(joined(before.a, more.a, both), joined(before.b, more.b, both));
}

// What the row makes of a stretch; the first team has the columns.
fn through_stretch(lane: u32, kv_head: u32, table_at: u32, seen: Seen) -> Sum {
    if (lane < STRETCH / 16u && seen.base + 16u * lane <= seen.last) {
        let block = block_tables[table_at + seen.base / 16u + lane];
        places[lane] = (block * KV_HEADS + kv_head) * 16u * KV_WORDS;
    }
    workgroupBarrier();
    read_keys(lane, seen, 0u);
    weigh(lane, score(lane, seen), seen);
    add_values(lane, seen);
    return put_together(lane, seen);
}

fn is_seen(seen: Seen, p: u32) -> bool {
    return seen.base + p >= seen.first && seen.base + p <= seen.last;
}

// The fours of all positions' keys from one on. Where there is nothing to be seen, the last position is read.
fn read_keys(lane: u32, seen: Seen, c: u32) {
    const GRANULES: u32 = K_FOURS / PER;
    @repeat i K_LOADS
    let i@i = lane + @iu * WG;
    ahead@i = keys_at(place_of(seen, i@i / GRANULES), c / PER + i@i % GRANULES);
    @end
}

// Whole values of each portion's positions from one on.
fn read_values(lane: u32, seen: Seen, c: u32) {
    const GRANULES: u32 = FOURS / PER;
    @repeat i V_LOADS
    let i@i = lane + @iu * WG;
    let r@i = i@i / GRANULES;
    ahead@i = values_at(place_of(seen, r@i / V_ROWS * PORTION + c + r@i % V_ROWS), i@i % GRANULES);
    @end
}

// The scores of the lane's position.
fn score(lane: u32, seen: Seen) -> PerHead {
    const GRANULES: u32 = K_FOURS / PER;
    var sum = PerHead(0.0);
    for (var c = 0u; c < FOURS; c += K_FOURS) {
        workgroupBarrier();
        @repeat i K_LOADS
        let i@i = lane + @iu * WG;
        stage(i@i / GRANULES * K_STRIDE + i@i % GRANULES * PER, ahead@i);
        @end
        workgroupBarrier();
        if (c + K_FOURS < FOURS) {
            read_keys(lane, seen, c + K_FOURS);
        } else {
            read_values(lane, seen, 0u);
        }
        for (var f = 0u; f < K_FOURS; f++) {
            let key = floats_of(staged[lane * K_STRIDE + f]);
            let i = 4u * (c + f);
            sum = fma(query[i], PerHead(key.x), sum);
            sum = fma(query[i + 1u], PerHead(key.y), sum);
            sum = fma(query[i + 2u], PerHead(key.z), sum);
            sum = fma(query[i + 3u], PerHead(key.w), sum);
        }
    }
    return capped(sum);
}

// Where a position of the stretch lies, or the last one if that comes before.
fn place_of(seen: Seen, p: u32) -> u32 {
    let there = min(p, seen.last - seen.base);
    return places[there / 16u] + there % 16u * KV_WORDS;
}

// Leaves the weights of the lane's position, each portion's largest score, and in eighths of a portion the sum of its weights.
fn weigh(lane: u32, own: PerHead, seen: Seen) {
    let team = lane / PORTION;
    let l = lane % PORTION;
    let counts = is_seen(seen, lane);
    weights[lane] = select(PerHead(-3e38), own, counts);
    workgroupBarrier();
    if (l < 8u) {
        var largest = weights[team * PORTION + 8u * l];
        for (var i = 1u; i < 8u; i++) {
            largest = max(largest, weights[team * PORTION + 8u * l + i]);
        }
        eighths[8u * team + l] = largest;
    }
    workgroupBarrier();
    var largest = eighths[8u * team];
    for (var i = 1u; i < 8u; i++) {
        largest = max(largest, eighths[8u * team + i]);
    }
    if (l == 0u) {
        largests[team] = largest;
    }
    // Read again, so that it is rounded as it lies there.
    let weight = exps(weights[lane] - largest);
    weights[lane] = select(PerHead(0.0), weight, counts);
    workgroupBarrier();
    if (l < 8u) {
        let at = team * PORTION + l / 4u * (PORTION / 2u) + l % 4u;
        var sum = weights[at];
        for (var i = 1u; i < PORTION / 8u; i++) {
            sum += weights[at + 4u * i];
        }
        eighths[8u * team + l] = sum;
    }
    // What multiplies the portions: of those before together, and of this one.
    if (lane >= WG - TEAMS) {
        let t = lane - (WG - TEAMS);
        var before = PerHead(-3e38);
        for (var i = 0u; i < t; i++) {
            before = max(before, largests[i]);
        }
        shares[t] = shares_of(before, largests[t]);
    }
}

// The team's weighted values.
fn add_values(lane: u32, seen: Seen) {
    const GRANULES: u32 = FOURS / PER;
    let team = lane / PORTION;
    @repeat n HELD
    of_portion@n = Columns(PerHead(0.0), PerHead(0.0));
    @end
    for (var c = 0u; c < PORTION; c += V_ROWS) {
        workgroupBarrier();
        @repeat i V_LOADS
        let i@i = lane + @iu * WG;
        if (i@i < TEAMS * V_ROWS * GRANULES) {
            stage(i@i / GRANULES * FOURS + i@i % GRANULES * PER, ahead@i);
        }
        @end
        workgroupBarrier();
        if (c + V_ROWS < PORTION) {
            read_values(lane, seen, c + V_ROWS);
        }
        let begin = team * PORTION + c;
        let low = max(seen.first, seen.base + begin) - seen.base;
        let high = min(seen.last + 1u, seen.base + begin + V_ROWS) - seen.base;
        if (low == begin && high == begin + V_ROWS) {
            for (var j = 0u; j < V_ROWS; j++) {
                add_value(lane, team * V_ROWS + j, begin + j);
            }
        } else if (seen.base + begin <= seen.last) {
            for (var p = low; p < high; p++) {
                add_value(lane, team * V_ROWS + p - begin, p);
            }
        }
    }
}

fn add_value(lane: u32, r: u32, p: u32) {
    let weight = weights[p];
    @repeat n HELD
    let pair@n = min(lane % PORTION + @nu * PORTION, 2u * FOURS - 1u);
    let value@n = pair_of(staged[r * FOURS + pair@n / 2u], pair@n % 2u == 1u);
    of_portion@n.a = fma(weight, PerHead(value@n.x), of_portion@n.a);
    of_portion@n.b = fma(weight, PerHead(value@n.y), of_portion@n.b);
    @end
}

fn put_together(lane: u32, seen: Seen) -> Sum {
    var sum = Sum(PerHead(-3e38), PerHead(0.0));
    @repeat n HELD
    of_stretch@n = Columns(PerHead(0.0), PerHead(0.0));
    @end
    for (var t = 0u; t < TEAMS; t++) {
        workgroupBarrier();
        if (lane / PORTION == t) {
            @repeat n HELD
            columns[@nu * PORTION + lane % PORTION] = of_portion@n;
            @end
        }
        workgroupBarrier();
        let begin = seen.base + t * PORTION;
        if (begin <= seen.last && begin + PORTION > seen.first && lane < PORTION) {
            let e = 8u * t;
            let low = (eighths[e] + eighths[e + 1u]) + (eighths[e + 2u] + eighths[e + 3u]);
            let high = (eighths[e + 4u] + eighths[e + 5u]) + (eighths[e + 6u] + eighths[e + 7u]);
            sum = joined_sum(sum, Sum(largests[t], low + high), shares[t]);
            @repeat n HELD
            of_stretch@n = joined_columns(of_stretch@n, columns[@nu * PORTION + lane], shares[t]);
            @end
        }
    }
    return sum;
}

// The row's sums over a stretch, for those that put stretches together.
fn leave_cell(lane: u32, at: u32, count: u32, sum: Sum) {
    if (lane >= PORTION) {
        return;
    }
    @repeat n HELD
    let i@n = 2u * (lane + @nu * PORTION);
    if (i@n < DIM) {
        keep(at + i@n, count, of_stretch@n.a);
    }
    if (i@n + 1u < DIM) {
        keep(at + i@n + 1u, count, of_stretch@n.b);
    }
    @end
    if (lane == 0u) {
        keep(at + DIM, count, sum.largest);
        keep(at + DIM + 1u, count, sum.total);
    }
}
