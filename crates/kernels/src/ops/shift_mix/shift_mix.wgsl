// A workgroup makes all mixes of a row, or of some columns of it. That of a span's first row also leaves the last one's normed
// values as the state, after it has read what was there: nobody else reads it.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wg.x;
    let span = span_at(span_number(row));
    let is_first = row == span.first_row;
    let last = span.first_row + span.rows - 1u;
    let s = statistics(lane, row);
    // Of the row before; a span's first row needs those of its last instead.
    let other = select(max(row, 1u) - 1u, last, is_first);
    var other_s = s;
    if (other != row) {
        other_s = statistics(lane, other);
    }
    let state_at = span.slot * WIDTH;
    for (var i = wg.y * COLUMNS + lane; i < min((wg.y + 1u) * COLUMNS, WIDTH); i += WG) {
        let now = normed(raw_at(row, i), s, i);
        let other_now = normed(raw_at(other, i), other_s, i);
        var before = other_now;
        if (is_first) {
            before = 0.0;
            if (span.start > 0u) {
                before = state[state_at + i];
            }
            state[state_at + i] = other_now;
        }
        for (var m = 0u; m < MIXES; m++) {
            y[(row * MIXES + m) * WIDTH + i] = fma(before - now, mix[m * WIDTH + i], now);
        }
    }
}
