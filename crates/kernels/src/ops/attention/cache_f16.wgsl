// Keys and values as halves, two in a word. What fills the last word of an odd head is zero, and so is the query there.

fn score_of(at: u32) -> f32 {
    var sum = 0.0;
    for (var w = 0u; w < KV_WORDS; w++) {
        let two = unpack2x16float(keys[at + w]);
        sum = fma(query[2u * w], two.x, sum);
        sum = fma(query[2u * w + 1u], two.y, sum);
    }
    return sum;
}

fn value_at(at: u32, i: u32) -> f32 {
    return unpack2x16float(values[at + i / 2u])[i % 2u];
}
