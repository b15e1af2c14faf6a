// Sums over a workgroup, in an order that depends on nothing but the number of lanes.

var<workgroup> reduced: array<f32, WG>;

fn group_sum(lane: u32, value: f32) -> f32 {
    reduced[lane] = value;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step = step / 2u) {
        if (lane < step) {
            reduced[lane] = reduced[lane] + reduced[lane + step];
        }
        workgroupBarrier();
    }
    let sum = reduced[0];
    workgroupBarrier();
    return sum;
}

fn group_max(lane: u32, value: f32) -> f32 {
    reduced[lane] = value;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step = step / 2u) {
        if (lane < step) {
            reduced[lane] = max(reduced[lane], reduced[lane + step]);
        }
        workgroupBarrier();
    }
    let largest = reduced[0];
    workgroupBarrier();
    return largest;
}
