var<workgroup> sums: array<Long, WG>;

// The sum of what the lanes up to this one have; that of the last stays in `sums`.
fn summed(lane: u32, own: Long) -> Long {
    workgroupBarrier();
    sums[lane] = own;
    workgroupBarrier();
    for (var step = 1u; step < WG; step = step * 2u) {
        var sum = sums[lane];
        if (lane >= step) {
            sum = plus(sums[lane - step], sum);
        }
        workgroupBarrier();
        sums[lane] = sum;
        workgroupBarrier();
    }
    return sums[lane];
}
