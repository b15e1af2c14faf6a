// The rows that are multiplied, normed, as quads of columns with zeros behind their ends.

const X_QUADS: u32 = (X_COLUMNS + 3u) / 4u;

fn is_inside(i: u32) -> vec4<bool> {
    return vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(X_COLUMNS);
}

fn input_quad(row: u32, s: vec2<f32>, i: u32) -> vec4<f32> {
    if (i >= X_QUADS) {
        return vec4<f32>();
    }
    return select(vec4<f32>(), normed_quad(raw_quad(row, i), s, i), is_inside(i));
}
