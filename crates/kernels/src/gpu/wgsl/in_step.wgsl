// The same sum for all lanes of a workgroup, in an order that depends on nothing but their number.

var<workgroup> sums_in_step: array<f32, WG / IN_STEP>;

fn sum_of_all(lane: u32, value: f32) -> f32 {
    var sum = value;
    for (var step = IN_STEP / 2u; step > 0u; step = step / 2u) {
        sum += subgroupShuffleXor(sum, step);
    }
    if (lane % IN_STEP == 0u) {
        sums_in_step[lane / IN_STEP] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < WG / IN_STEP; i++) {
        total += sums_in_step[i];
    }
    workgroupBarrier();
    return total;
}
