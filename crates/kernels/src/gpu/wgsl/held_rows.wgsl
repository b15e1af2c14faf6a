// Workgroups hold the rows that are multiplied as they are.

fn row_of(i: u32) -> u32 {
    return input_row(i);
}

fn filled_quad(row: u32, s: vec2<f32>, i: u32) -> vec4<f32> {
    return input_quad(row, s, i);
}

fn factor(row: u32, g: u32) -> f32 {
    return 1.0;
}
