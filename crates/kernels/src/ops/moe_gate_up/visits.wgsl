// A workgroup's row is one of a row's choices of experts.

var<private> expert: u32;

fn all_rows() -> u32 {
    return batch_rows() * TOP_K;
}

fn first_row_of(wg: vec3<u32>) -> u32 {
    return wg.x * TOP_K + wg.z;
}

fn begin(lane: u32, row: u32) {
    expert = min(u32(routes[row / TOP_K * 2u * TOP_K + row % TOP_K]), EXPERTS - 1u);
}

fn row_of(row: u32) -> u32 {
    return row / TOP_K;
}

fn filled_quad(row: u32, s: vec2<f32>, i: u32) -> vec4<f32> {
    return input_quad(row, s, i);
}

fn factor(row: u32, g: u32) -> f32 {
    return 1.0;
}

fn is_made(out: u32) -> bool {
    let weight_row = expert * N_OUT + out;
    return out < N_OUT && weight_row >= FIRST && weight_row < END;
}

// Which of a matrix's rows from `first` to before `end` makes an output, or another one where none of them does.
fn weight_row(out: u32, first: u32, end: u32) -> u32 {
    return clamp(expert * N_OUT + out, first, end - 1u) - first;
}
