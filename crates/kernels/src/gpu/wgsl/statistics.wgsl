// What a norm takes off a row and multiplies it with.

fn mean_of(lane: u32, row: u32) -> f32 {
    var sum = vec4<f32>();
    for (var i = lane; i < X_QUADS; i += WG) {
        sum += select(vec4<f32>(), raw_quad(row, i), is_inside(i));
    }
    return sum_of_all(lane, (sum.x + sum.y) + (sum.z + sum.w)) / f32(X_COLUMNS);
}

fn spread_around(lane: u32, row: u32, mean: f32) -> vec2<f32> {
    var squares = vec4<f32>();
    for (var i = lane; i < X_QUADS; i += WG) {
        let d = select(vec4<f32>(), raw_quad(row, i) - vec4<f32>(mean), is_inside(i));
        squares = fma(d, d, squares);
    }
    let sum = sum_of_all(lane, (squares.x + squares.y) + (squares.z + squares.w));
    let variance = sum / f32(X_COLUMNS) + EPS;
    // One step of Newton's: the built-in root may be off by a little.
    let root = inverseSqrt(variance);
    return vec2<f32>(mean, fma(0.5 * root, fma(-variance * root, root, 1.0), root));
}
