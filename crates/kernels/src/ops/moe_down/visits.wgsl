// A row's choices of experts, one after another as if they were one long row and one long row of weights. Each choice's weight
// is a factor of its columns.

struct PartRaw { raw: Raw, is_here: bool }

struct Part { unit: Unit, is_here: bool }

// Where the chosen experts' rows begin.
var<workgroup> begins: array<u32, TOP_K>;

fn all_rows() -> u32 {
    return batch_rows();
}

fn first_row_of(wg: vec3<u32>) -> u32 {
    return wg.x;
}

fn begin(lane: u32, row: u32) {
    for (var i = lane; i < TOP_K; i += WG) {
        begins[i] = min(u32(routes[row * 2u * TOP_K + i]), EXPERTS - 1u) * N_OUT;
    }
    workgroupBarrier();
}

fn row_of(row: u32) -> u32 {
    return row;
}

fn filled_quad(row: u32, s: vec2<f32>, i: u32) -> vec4<f32> {
    let choice = i / (SLOT_STEPS * STEP_QUADS);
    if (choice >= TOP_K) {
        return vec4<f32>();
    }
    return input_quad(row * TOP_K + choice, s, i % (SLOT_STEPS * STEP_QUADS));
}

fn factor(row: u32, g: u32) -> f32 {
    return routes[row * 2u * TOP_K + TOP_K + g / SLOT_STEPS];
}

fn first_raw(out: u32, g: u32) -> PartRaw {
    let weight_row = begins[g / SLOT_STEPS] + min(out, N_OUT - 1u);
    let raw = raw_of((clamp(weight_row, FIRST, END - 1u) - FIRST) * STRIDE, g % SLOT_STEPS);
    return PartRaw(raw, IS_WHOLE || (weight_row >= FIRST && weight_row < END));
}

fn first_unit(part: PartRaw) -> Part {
    return Part(unit_from(part.raw), part.is_here);
}

fn first_added(part: Part, a: Activations, sum: f32) -> f32 {
    return select(sum, added(part.unit, a, sum), part.is_here);
}

fn is_made(out: u32) -> bool {
    return out < N_OUT;
}

fn finish(row: u32, out: u32, first: f32, second: f32) {
    y[row * N_OUT + out] += first;
}
