// Products of rows with rows of one matrix, and with those N_OUT after them where there are gates and ups.

fn first_row_of(wg: vec3<u32>) -> u32 {
    return wg.x * TILE;
}

fn begin(lane: u32, row: u32) {}

fn is_made(out: u32) -> bool {
    return out < N_OUT;
}

fn first_raw(out: u32, g: u32) -> Raw {
    return raw_of(min(out, N_OUT - 1u) * STRIDE, g);
}

fn second_raw(out: u32, g: u32) -> Raw {
    return raw_of((min(out, N_OUT - 1u) + N_OUT) * STRIDE, g);
}

fn first_unit(r: Raw) -> Unit {
    return unit_from(r);
}

fn second_unit(r: Raw) -> Unit {
    return unit_from(r);
}

fn first_added(u: Unit, a: Activations, sum: f32) -> f32 {
    return added(u, a, sum);
}

fn second_added(u: Unit, a: Activations, sum: f32) -> f32 {
    return added(u, a, sum);
}
