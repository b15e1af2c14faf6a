// What `Weights::of` gives, in the same steps. No logit is greater than the greatest.
fn weight_of(bits: u32, greatest: Wide, scale: Wide) -> Long {
    if ((bits & 0x7f800000u) == 0x7f800000u) {
        return Long(0u, 0u);
    }
    let x = product_of(sum_of(widened(bits), negated(greatest)), scale);
    // 64 and more: nothing is left of such a power of two.
    if (x.power > -47) {
        return Long(0u, 0u);
    }
    var whole = 0u;
    if (x.power >= -53) {
        whole = rounded_right(x.digits, u32(-x.power)).x;
    }
    if (whole >= 50u) {
        return Long(0u, 0u);
    }
    let rest = sum_of(x, wide(false, 0, Long(whole, 0u)));
    var coefficients = EXP2;
    var p = coefficients[0];
    for (var i = 1u; i < EXP2_COUNT; i++) {
        p = sum_of(product_of(p, rest), coefficients[i]);
    }
    return rounded_right(p.digits, clamp(u32(i32(whole) - LOG2_UNIT - p.power), 1u, 63u));
}
