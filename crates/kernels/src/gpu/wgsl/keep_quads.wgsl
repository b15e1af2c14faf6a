// Keeps normed rows, filled up with zeros to whole steps.

fn keep(to: u32, i: u32, v: vec4<f32>) {
    if (i < STEP_QUADS * STEPS) {
        kept[to * STEP_QUADS * STEPS + i] = v;
    }
}
