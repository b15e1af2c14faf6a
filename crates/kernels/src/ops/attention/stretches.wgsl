// A workgroup puts the stretches of a row's head together, in their order. Four are read before they are used.

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = wg.x;
    let split = split_at(wg.y);
    let last = split.position / STRETCH;
    var sum = Sum(sink_of(head), select(0.0, 1.0, HAS_SINK));
    @repeat h HELD
    var held@h = 0.0;
    @end
    for (var s = first_seen(split.position) / STRETCH; s <= last; s += 4u) {
        @repeat c FOUR
        let at@c = ((split.cell + min(s + @cu, last)) * HEADS + head) * CELL;
        let sum@c = Sum(cells[at@c + DIM], cells[at@c + DIM + 1u]);
        @repeat h HELD
        let column@c_@h = cells[at@c + min(lane + @hu * WG, DIM)];
        @end
        @end
        @repeat c FOUR
        if (s + @cu <= last) {
            let both = shares_of(sum.largest, sum@c.largest);
            sum = joined_sum(sum, sum@c, both);
            @repeat h HELD
            held@h = joined(held@h, column@c_@h, both);
            @end
        }
        @end
    }
    let whole = 1.0 / sum.total;
    @repeat h HELD
    if (lane + @hu * WG < DIM) {
        y[(split.row * HEADS + head) * DIM + lane + @hu * WG] = held@h * whole;
    }
    @end
}
