// Floats of 64 bits in whole numbers, rounded as IEEE 754 says, for devices have none. A weight must be the same to the last bit
// wherever it is made, so nothing here may be computed in another way.

// 64 bits, the low word first.
alias Long = vec2<u32>;

fn plus(a: Long, b: Long) -> Long {
    let low = a.x + b.x;
    return Long(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn minus(a: Long, b: Long) -> Long {
    return Long(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn is_less(a: Long, b: Long) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

fn shifted_left(v: Long, n: u32) -> Long {
    if (n >= 32u) {
        return Long(0u, v.x << (n & 31u));
    }
    return Long(v.x << n, (v.y << n) | select(0u, v.x >> ((32u - n) & 31u), n > 0u));
}

fn shifted_right(v: Long, n: u32) -> Long {
    if (n >= 64u) {
        return Long(0u, 0u);
    }
    if (n >= 32u) {
        return Long(v.y >> (n & 31u), 0u);
    }
    return Long((v.x >> n) | select(0u, v.y << ((32u - n) & 31u), n > 0u), v.y >> n);
}

// The same, but that the last bit tells of all that are lost.
fn sticky_right(v: Long, n: u32) -> Long {
    let kept = shifted_right(v, n);
    let again = shifted_left(kept, min(n, 63u));
    let is_lost = select(any(again != v), any(v != Long(0u, 0u)), n >= 64u);
    return Long(kept.x | select(0u, 1u, is_lost), kept.y);
}

// The nearest whole number of v · 2^-n, the even one of two; n is from 1 to 63.
fn rounded_right(v: Long, n: u32) -> Long {
    let whole = shifted_right(v, n);
    let rest = minus(v, shifted_left(whole, n));
    let half = shifted_left(Long(1u, 0u), n - 1u);
    let is_more = is_less(half, rest) || (all(half == rest) && (whole.x & 1u) == 1u);
    return plus(whole, Long(select(0u, 1u, is_more), 0u));
}

// ± digits · 2^power; digits have 53 bits, or are none, with a power below all others.
struct Wide { is_negative: bool, power: i32, digits: Long }

// Of digits of any size, the last of which may tell of lost ones.
fn wide(is_negative: bool, power: i32, digits: Long) -> Wide {
    if (all(digits == Long(0u, 0u))) {
        return Wide(false, -10000, digits);
    }
    let zeros = select(countLeadingZeros(digits.y), 32u + countLeadingZeros(digits.x), digits.y == 0u);
    var made = Wide(is_negative, power - i32(zeros) + 11, rounded_right(shifted_left(digits, zeros), 11u));
    if (made.digits.y == 0x200000u) {
        made = Wide(is_negative, made.power + 1, Long(0u, 0x100000u));
    }
    return made;
}

// Of the bits of a finite float of 32.
fn widened(bits: u32) -> Wide {
    let exponent = (bits >> 23u) & 0xffu;
    let digits = (bits & 0x7fffffu) | select(0u, 0x800000u, exponent > 0u);
    return wide((bits >> 31u) == 1u, i32(max(exponent, 1u)) - 150, Long(digits, 0u));
}

// Of the words of a normal float of 64 that is more than 0.
fn wide_of_words(low: u32, high: u32) -> Wide {
    return Wide(false, i32(high >> 20u) - 1075, Long(low, (high & 0xfffffu) | 0x100000u));
}

fn negated(a: Wide) -> Wide {
    return Wide(!a.is_negative, a.power, a.digits);
}

fn sum_of(a: Wide, b: Wide) -> Wide {
    if (all(a.digits == Long(0u, 0u))) {
        return b;
    }
    if (all(b.digits == Long(0u, 0u))) {
        return a;
    }
    let is_first = a.power > b.power || (a.power == b.power && !is_less(a.digits, b.digits));
    var large = a;
    var small = b;
    if (!is_first) {
        large = b;
        small = a;
    }
    let apart = u32(min(large.power - small.power, 64));
    let first = shifted_left(large.digits, 10u);
    let second = sticky_right(shifted_left(small.digits, 10u), apart);
    var digits = plus(first, second);
    if (large.is_negative != small.is_negative) {
        digits = minus(first, second);
    }
    return wide(large.is_negative, large.power - 10, digits);
}

const DIGIT: u32 = 0x3fffu;

// The first four digits of 14 bits.
fn four_of(v: Long) -> vec4<u32> {
    return vec4<u32>(v.x, v.x >> 14u, (v.x >> 28u) | (v.y << 4u), v.y >> 10u) & vec4<u32>(DIGIT);
}

fn product_of(a: Wide, b: Wide) -> Wide {
    let x = four_of(a.digits);
    let y = four_of(b.digits);
    let c0 = x.x * y.x;
    let c1 = x.x * y.y + x.y * y.x + (c0 >> 14u);
    let c2 = x.x * y.z + x.y * y.y + x.z * y.x + (c1 >> 14u);
    let c3 = x.x * y.w + x.y * y.z + x.z * y.y + x.w * y.x + (c2 >> 14u);
    let c4 = x.y * y.w + x.z * y.z + x.w * y.y + (c3 >> 14u);
    let c5 = x.z * y.w + x.w * y.z + (c4 >> 14u);
    let c6 = x.w * y.w + (c5 >> 14u);
    let is_lost = ((c0 | c1 | c2) & DIGIT) != 0u;
    let d3 = c3 & DIGIT;
    let d4 = c4 & DIGIT;
    let d5 = c5 & DIGIT;
    let d6 = c6 & DIGIT;
    let low = d3 | (d4 << 14u) | (d5 << 28u) | select(0u, 1u, is_lost);
    let high = (d5 >> 4u) | (d6 << 10u) | ((c6 >> 14u) << 24u);
    return wide(a.is_negative != b.is_negative, a.power + b.power + 42, Long(low, high));
}

// a · b · 2^-53, where a has 63 bits and b 53.
fn share_of(a: Long, b: Long) -> Long {
    let x = four_of(a);
    let top = a.y >> 24u;
    let y = four_of(b);
    let c0 = x.x * y.x;
    let c1 = x.x * y.y + x.y * y.x + (c0 >> 14u);
    let c2 = x.x * y.z + x.y * y.y + x.z * y.x + (c1 >> 14u);
    let c3 = x.x * y.w + x.y * y.z + x.z * y.y + x.w * y.x + (c2 >> 14u);
    let c4 = x.y * y.w + x.z * y.z + x.w * y.y + top * y.x + (c3 >> 14u);
    let c5 = x.z * y.w + x.w * y.z + top * y.y + (c4 >> 14u);
    let c6 = x.w * y.w + top * y.z + (c5 >> 14u);
    let c7 = top * y.w + (c6 >> 14u);
    let low = ((c3 & DIGIT) >> 11u) | ((c4 & DIGIT) << 3u) | ((c5 & DIGIT) << 17u) | (c6 << 31u);
    let high = ((c6 & DIGIT) >> 1u) | ((c7 & DIGIT) << 13u) | ((c7 >> 14u) << 27u);
    return Long(low, high);
}
