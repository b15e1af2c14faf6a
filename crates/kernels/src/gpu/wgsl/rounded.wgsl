// Activations as codes of eight bits with a scale for each unit: see rounding.rs.

// A unit: its codes, what they are scaled with, and the sums of its halves' codes.
struct Activations { low: vec4<u32>, high: vec4<u32>, scale: f32, sums: vec2<i32> }

struct Rounded { word: u32, scale: f32, sums: u32 }

// The quotient nearest to the true one: the built-in one may be off by a little, and a code with it.
fn quotient(a: f32, b: f32) -> f32 {
    let q = a / b;
    return fma(fma(-q, b, a), 1.0 / b, q);
}

// The codes of a lane's quad; the seven other lanes of eight have the rest of the unit.
fn rounded(v: vec4<f32>) -> Rounded {
    // As bits, in which what is no number is larger than any number and so is not lost.
    let bits = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
    var most = max(max(bits.x, bits.y), max(bits.z, bits.w));
    most = max(most, subgroupShuffleXor(most, 1u));
    most = max(most, subgroupShuffleXor(most, 2u));
    most = max(most, subgroupShuffleXor(most, 4u));
    let largest = bitcast<f32>(most);
    let is_something = most > bitcast<u32>(NOTHING) && most < 0x7f800000u;
    let inverse = select(0.0, quotient(127.0, largest), is_something);
    let word = pack4xI8(vec4<i32>(round(v * inverse)));
    var sum = dot4I8Packed(word, 0x01010101u);
    sum += subgroupShuffleXor(sum, 1u);
    sum += subgroupShuffleXor(sum, 2u);
    let other = subgroupShuffleXor(sum, 4u);
    let sums = (bitcast<u32>(sum) & 0xffffu) | (bitcast<u32>(other) << 16u);
    return Rounded(word, quotient(largest, 127.0), sums);
}

// What a unit has besides its codes, from two words.
fn unit_of_codes(low: vec4<u32>, high: vec4<u32>, two: vec2<u32>) -> Activations {
    let sums = bitcast<i32>(two.y);
    return Activations(low, high, bitcast<f32>(two.x), vec2<i32>((sums << 16u) >> 16u, sums >> 16u));
}
