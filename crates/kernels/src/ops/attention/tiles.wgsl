// A workgroup takes some rows of a span and one of their heads through all positions that any of them sees, portion by portion.
// Lane (r, c) of 4 by 16 has rows r, r + 4, ...: of a portion the scores of positions c, c + 16, ..., and then columns 4c, ...,
// 4c + 64, ... of the weighted values. What it makes of a stretch is put to what is before it in `y`.

// Fours of a position's keys, and how far they lie apart: an odd number, so that lanes meet in no bank.
const K_STRIDE: u32 = K_FOURS | 1u;
const Q_STRIDE: u32 = FOURS | 1u;
const S_STRIDE: u32 = PORTION / 4u + 1u;

// The rows and what is seen of a portion.
struct Tile { first_row: u32, rows: u32, start: u32, kv_head: u32, table_at: u32 }
struct Seen { base: u32, first: u32, last: u32 }

var<workgroup> query: array<vec4<f32>, ROWS * Q_STRIDE>;
var<workgroup> staged: array<Four, STAGED>;
var<workgroup> scores: array<vec4<f32>, ROWS * S_STRIDE>;
var<workgroup> places: array<u32, PORTION / 16u>;
// Of halves of a row's portion.
var<workgroup> halves: array<vec2<f32>, 2u * ROWS>;
var<workgroup> shares: array<Shares, ROWS>;
var<workgroup> totals: array<f32, ROWS>;

// What the lane has of the stretch's weighted values.
@repeat i EACH
@repeat n HELD
var<private> made@i_@n: vec4<f32>;
@end
@end

// Of the row that is the lane's number.
var<private> of_stretch: Sum;
var<private> of_all: Sum;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = wg.x;
    let first_row = first_of_tile(wg.y) + wg.z * ROWS;
    let span = span_at(span_number(first_of_tile(wg.y)));
    let end = span.first_row + span.rows;
    if (first_row >= end) {
        return;
    }
    let start = span.start + first_row - span.first_row;
    let tile = Tile(first_row, min(ROWS, end - first_row), start, head * KV_HEADS / HEADS, span.table_at);
    let last = start + tile.rows - 1u;
    let first = first_seen(start);
    take_queries(lane, head, tile);
    of_stretch = Sum(-3e38, 0.0);
    of_all = Sum(sink_of(head), select(0.0, 1.0, HAS_SINK));
    @repeat i EACH
    @repeat n HELD
    made@i_@n = vec4<f32>(0.0);
    @end
    @end
    var is_first = true;
    for (var b = first / PORTION; b <= last / PORTION; b++) {
        let seen = Seen(b * PORTION, first, last);
        take_scores(lane, tile, seen);
        weigh(lane, tile, seen);
        add_values(lane, tile, seen, first_seen(last) <= seen.base && seen.base + PORTION <= start + 1u);
        let is_last = b == last / PORTION;
        if (b % (STRETCH / PORTION) == STRETCH / PORTION - 1u || is_last) {
            end_stretch(lane, tile, head, is_first, is_last);
            is_first = false;
        }
    }
}

// The portion's weighted values go to those of the stretch. Of a whole portion all rows see all positions.
fn add_values(lane: u32, tile: Tile, seen: Seen, is_whole: bool) {
    let row = lane / 16u;
    let four = lane % 16u;
    @repeat i EACH
    @repeat n HELD
    var more@i_@n = vec4<f32>(0.0);
    @end
    @end
    for (var c = 0u; c < PORTION; c += V_ROWS) {
        stage_values(lane, tile, seen, c);
        for (var q = 0u; q < V_ROWS / 4u; q++) {
            @repeat i EACH
            let w@i = scores[(row + @iu * 4u) * S_STRIDE + c / 4u + q];
            @end
            if (is_whole) {
                @repeat j FOUR
                let at@j = (4u * q + @ju) * FOURS + four;
                @repeat n HELD
                let value@j_@n = floats_of(staged[min(at@j + 16u * @nu, STAGED - 1u)]);
                @end
                @repeat i EACH
                @repeat n HELD
                more@i_@n = fma(vec4<f32>(w@i[@j]), value@j_@n, more@i_@n);
                @end
                @end
                @end
            } else {
                // What a row does not see may be no number, and no weight makes nothing of that.
                for (var j = 0u; j < 4u; j++) {
                    let at = (4u * q + j) * FOURS + four;
                    let p = seen.base + c + 4u * q + j;
                    @repeat n HELD
                    let value@n = floats_of(staged[min(at + 16u * @nu, STAGED - 1u)]);
                    @end
                    @repeat i EACH
                    if (is_seen(tile, row + @iu * 4u, p)) {
                        @repeat n HELD
                        more@i_@n = fma(vec4<f32>(w@i[j]), value@n, more@i_@n);
                        @end
                    }
                    @end
                }
            }
        }
    }
    @repeat i EACH
    let both@i = shares[row + @iu * 4u];
    @repeat n HELD
    made@i_@n = joined_four(made@i_@n, more@i_@n, both@i);
    @end
    @end
}

fn joined_four(before: vec4<f32>, more: vec4<f32>, both: Shares) -> vec4<f32> {
    return fma(before, vec4<f32>(both.kept), more * both.taken);
}

fn is_seen(tile: Tile, row: u32, p: u32) -> bool {
    return p <= tile.start + row && p >= first_seen(tile.start + row);
}

// Of four positions.
fn are_seen(tile: Tile, row: u32, p: u32) -> vec4<bool> {
    let four = vec4<u32>(p, p + 1u, p + 2u, p + 3u);
    let position = tile.start + row;
    return (four <= vec4<u32>(position)) & (four >= vec4<u32>(first_seen(position)));
}

fn take_queries(lane: u32, head: u32, tile: Tile) {
    for (var i = lane; i < ROWS * FOURS; i += WG) {
        let row = i / FOURS;
        let f = i % FOURS;
        let begin = (tile.first_row + min(row, tile.rows - 1u)) * WIDTH + head * DIM;
        var four = vec4<f32>(0.0);
        for (var k = 0u; k < 4u; k++) {
            if (4u * f + k < DIM) {
                four[k] = qkv[begin + 4u * f + k] * SCALE;
            }
        }
        query[row * Q_STRIDE + f] = four;
    }
}

// The products of all rows and positions of a portion.
fn take_scores(lane: u32, tile: Tile, seen: Seen) {
    const GRANULES: u32 = K_FOURS / PER;
    let row = lane / 16u;
    let column = lane % 16u;
    if (lane < PORTION / 16u && seen.base + 16u * lane <= seen.last) {
        let block = block_tables[tile.table_at + seen.base / 16u + lane];
        places[lane] = (block * KV_HEADS + tile.kv_head) * 16u * KV_WORDS;
    }
    @repeat i EACH
    var sum@i = vec4<f32>(0.0);
    @end
    for (var c = 0u; c < FOURS; c += K_FOURS) {
        workgroupBarrier();
        @repeat i K_LOADS
        let p@i = (lane + @iu * WG) / GRANULES;
        let g@i = (lane + @iu * WG) % GRANULES;
        let granule@i = keys_at(place_of(seen, p@i), c / PER + g@i);
        @end
        @repeat i K_LOADS
        stage(p@i * K_STRIDE + g@i * PER, granule@i);
        @end
        workgroupBarrier();
        for (var f = 0u; f < K_FOURS; f++) {
            @repeat k FOUR
            let key@k = floats_of(staged[(column + 16u * @ku) * K_STRIDE + f]);
            @end
            let x = vec4<f32>(key0.x, key1.x, key2.x, key3.x);
            let y = vec4<f32>(key0.y, key1.y, key2.y, key3.y);
            let z = vec4<f32>(key0.z, key1.z, key2.z, key3.z);
            let w = vec4<f32>(key0.w, key1.w, key2.w, key3.w);
            @repeat i EACH
            let q@i = query[(row + @iu * 4u) * Q_STRIDE + c + f];
            sum@i = fma(vec4<f32>(q@i.x), x, sum@i);
            sum@i = fma(vec4<f32>(q@i.y), y, sum@i);
            sum@i = fma(vec4<f32>(q@i.z), z, sum@i);
            sum@i = fma(vec4<f32>(q@i.w), w, sum@i);
            @end
        }
    }
    @repeat i EACH
    @repeat k FOUR
    scores[(row + @iu * 4u) * S_STRIDE + column / 4u + 4u * @ku][column % 4u] = sum@i[@k];
    @end
    @end
}

// Where a position of the portion lies, or the last one if that comes before.
fn place_of(seen: Seen, p: u32) -> u32 {
    let there = min(p, seen.last - seen.base);
    return places[there / 16u] + there % 16u * KV_WORDS;
}

// Weights in place of the scores, and what multiplies the portions before and this one.
fn weigh(lane: u32, tile: Tile, seen: Seen) {
    let row = lane % ROWS;
    let half = lane / ROWS;
    let at = row * S_STRIDE + half * (PORTION / 8u);
    workgroupBarrier();
    let first = seen.base + half * (PORTION / 2u);
    if (half < 2u) {
        var largest = vec4<f32>(-3e38);
        for (var i = 0u; i < PORTION / 8u; i++) {
            let four = scores[at + i];
            let score = vec4<f32>(capped(four.x), capped(four.y), capped(four.z), capped(four.w));
            scores[at + i] = select(vec4<f32>(-3e38), score, are_seen(tile, row, first + 4u * i));
            largest = max(largest, scores[at + i]);
        }
        halves[lane].x = max(max(largest.x, largest.y), max(largest.z, largest.w));
    }
    workgroupBarrier();
    if (half < 2u) {
        let largest = max(halves[row].x, halves[ROWS + row].x);
        for (var i = 0u; i < PORTION / 8u; i++) {
            let four = scores[at + i] - largest;
            let weights = vec4<f32>(exp_(four.x), exp_(four.y), exp_(four.z), exp_(four.w));
            scores[at + i] = select(vec4<f32>(0.0), weights, are_seen(tile, row, first + 4u * i));
        }
        // As they lie there.
        var sum = scores[at];
        for (var i = 1u; i < PORTION / 8u; i++) {
            sum += scores[at + i];
        }
        halves[lane].y = (sum.x + sum.y) + (sum.z + sum.w);
    }
    workgroupBarrier();
    if (half == 0u) {
        let more = Sum(max(halves[row].x, halves[ROWS + row].x), halves[row].y + halves[ROWS + row].y);
        let both = shares_of(of_stretch.largest, more.largest);
        of_stretch = joined_sum(of_stretch, more, both);
        shares[row] = both;
    }
}

fn stage_values(lane: u32, tile: Tile, seen: Seen, c: u32) {
    const GRANULES: u32 = FOURS / PER;
    workgroupBarrier();
    @repeat i V_LOADS
    let p@i = (lane + @iu * WG) / GRANULES;
    let g@i = (lane + @iu * WG) % GRANULES;
    let granule@i = values_at(place_of(seen, c + p@i), g@i);
    @end
    @repeat i V_LOADS
    if (p@i < V_ROWS) {
        stage(p@i * FOURS + g@i * PER, granule@i);
    }
    @end
    workgroupBarrier();
}

// The stretch goes to those before it.
fn end_stretch(lane: u32, tile: Tile, head: u32, is_first: bool, is_last: bool) {
    workgroupBarrier();
    if (lane < ROWS) {
        let both = shares_of(of_all.largest, of_stretch.largest);
        of_all = joined_sum(of_all, of_stretch, both);
        of_stretch = Sum(-3e38, 0.0);
        shares[lane] = both;
        totals[lane] = 1.0 / of_all.total;
    }
    workgroupBarrier();
    @repeat i EACH
    @repeat n HELD
    put(tile, head, lane / 16u + @iu * 4u, 4u * (lane % 16u + 16u * @nu), made@i_@n, is_first, is_last);
    made@i_@n = vec4<f32>(0.0);
    @end
    @end
}

// Puts four columns of a stretch to those before it; the last divides by what all weights are together.
fn put(tile: Tile, head: u32, row: u32, column: u32, more: vec4<f32>, is_first: bool, is_last: bool) {
    if (row >= tile.rows) {
        return;
    }
    let at = ((tile.first_row + row) * HEADS + head) * DIM;
    if (column < DIM) {
        var before = vec4<f32>(0.0);
        if (!is_first) {
            before = before_at(at, column);
        }
        let both = joined_four(before, more, shares[row]);
        leave(at, column, select(both, both * totals[row], is_last));
    }
}
