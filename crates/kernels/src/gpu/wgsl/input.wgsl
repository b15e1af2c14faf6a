// The rows that are multiplied, normed and padded with zeros to whole units.

fn raw_at(row: u32, i: u32) -> f32 {
    return x[row * X_WIDTH + X_AT + i];
}

fn column(row: u32, s: vec2<f32>, i: u32) -> f32 {
    if (i < X_COLUMNS) {
        return normed(raw_at(row, i), s, i);
    }
    return 0.0;
}

fn input_quad(row: u32, s: vec2<f32>, i: u32) -> vec4<f32> {
    return vec4<f32>(column(row, s, i), column(row, s, i + 1u), column(row, s, i + 2u), column(row, s, i + 3u));
}
