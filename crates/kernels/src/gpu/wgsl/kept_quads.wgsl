// Rows as they are, or that were made by a dispatch before.

fn activations(t: u32, row: u32, g: u32, start: u32) -> Activations {
    let at = row * KEPT + KEPT_AT + STEP_QUADS * g;
    var a: Activations;
    for (var k = 0u; k < STEP_QUADS; k++) {
        a.v[k] = kept[at + k];
    }
    return a;
}
