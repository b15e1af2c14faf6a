// Keys and values as floats.

fn score_of(at: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < DIM; i++) {
        sum = fma(query[i], bitcast<f32>(keys[at + i]), sum);
    }
    return sum;
}

fn value_at(at: u32, i: u32) -> f32 {
    return bitcast<f32>(values[at + i]);
}
