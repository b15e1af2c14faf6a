// Functions whose built-in versions are too coarse on some devices, or no numbers for large arguments.

// As bits, for a device may take it that there are no such floats.
fn is_no_number(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

// e to the x within two roundings; 0 far below, the largest power far above. What is no number stays none.
fn exp_(x: f32) -> f32 {
    if (is_no_number(x)) {
        return x;
    }
    let c = clamp(x, -104.0, 88.7);
    let n = round(c * 1.4426950408889634);
    // ln 2 in two pieces, so that the rest is exact.
    let r = fma(n, -1.42860677e-6, fma(n, -0.693145751953125, c));
    var p = 1.9875691500e-4;
    p = fma(p, r, 1.3981999507e-3);
    p = fma(p, r, 8.3334519073e-3);
    p = fma(p, r, 4.1665795894e-2);
    p = fma(p, r, 1.6666665459e-1);
    p = fma(p, r, 5.0000001201e-1);
    let e = fma(p, r * r, r) + 1.0;
    // Two steps, because the power alone may be less than all normal numbers.
    let half = i32(n) / 2;
    let rest = i32(n) - half;
    return e * power_of_two(half) * power_of_two(rest);
}

// For -126 to 127.
fn power_of_two(n: i32) -> f32 {
    return bitcast<f32>(u32(n + 127) << 23u);
}

fn sigmoid_(x: f32) -> f32 {
    return 1.0 / (1.0 + exp_(-x));
}

// A series near zero, where the quotient would lose its digits.
fn tanh_(x: f32) -> f32 {
    let a = abs(x);
    if (is_no_number(x)) {
        return x;
    }
    if (a < 0.35) {
        let s = x * x;
        var p = -0.00886323552990219656886f;
        p = fma(p, s, 0.0218694885361552028548);
        p = fma(p, s, -0.0539682539682539682540);
        p = fma(p, s, 0.133333333333333333333);
        p = fma(p, s, -0.333333333333333333333);
        return fma(x * s, p, x);
    }
    let t = 1.0 - 2.0 / (exp_(2.0 * min(a, 20.0)) + 1.0);
    return select(t, -t, x < 0.0);
}

fn gelu_tanh_(x: f32) -> f32 {
    let inner = 0.7978845608028654 * fma(0.044715 * x * x, x, x);
    // 0.5 (1 + tanh y) is the sigmoid of 2y, which loses nothing far below zero.
    return x * sigmoid_(2.0 * inner);
}

// The complementary error function of what is not negative, by a continued fraction's fit (Numerical Recipes, erfccheb).
fn erfc_positive(z: f32) -> f32 {
    let t = 2.0 / (2.0 + z);
    let ty = 4.0 * t - 2.0;
    var coefficients = array<f32, 18>(
        -1.3026537197817094, 0.64196979235649026, 0.019476473204185836, -0.009561514786808631, -9.46595344482036e-4,
        3.66839497852761e-4, 4.2523324806907e-5, -2.0278578112534e-5, -1.624290004647e-6, 1.303655835580e-6,
        1.5626441722e-8, -8.5238095915e-8, 6.529054439e-9, 5.059343495e-9, -9.91364156e-10, -2.27365122e-10,
        9.6467911e-11, 2.394038e-12);
    var d = 0.0;
    var dd = 0.0;
    for (var j = 17u; j > 0u; j = j - 1u) {
        let before = d;
        d = fma(ty, d, coefficients[j] - dd);
        dd = before;
    }
    return t * exp_(fma(-z, z, 0.5 * fma(ty, d, coefficients[0]) - dd));
}

fn gelu_erf_(x: f32) -> f32 {
    let tail = erfc_positive(abs(x) * 0.7071067811865476);
    return 0.5 * x * select(tail, 2.0 - tail, x > 0.0);
}

fn soft_capped(x: f32, cap: f32) -> f32 {
    return cap * tanh_(x / cap);
}

// The f16 nearest to a value, of two the even one, as its bits.
fn half_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) {
        return sign | select(0x7c00u, 0x7e00u, magnitude > 0x7f800000u);
    }
    if (magnitude >= 0x477ff000u) {
        return sign | 0x7c00u;
    }
    if (magnitude >= 0x38800000u) {
        let rounded = magnitude + 0xfffu + ((magnitude >> 13u) & 1u);
        return sign | ((rounded - 0x38000000u) >> 13u);
    }
    if (magnitude < 0x33000000u) {
        return sign;
    }
    // Less than all normal ones: whole multiples of 2^-24.
    let shift = 126u - (magnitude >> 23u);
    let mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    let whole = mantissa >> shift;
    let rest = mantissa & ((1u << shift) - 1u);
    let middle = 1u << (shift - 1u);
    let up = rest > middle || (rest == middle && (whole & 1u) == 1u);
    return sign | (whole + select(0u, 1u, up));
}

fn halves_of(a: f32, b: f32) -> u32 {
    return half_of(a) | (half_of(b) << 16u);
}
