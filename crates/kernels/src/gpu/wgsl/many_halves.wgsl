// Four halves, as the device has them.

alias Quad = vec4<f16>;

fn quad_of(v: vec4<f32>) -> Quad {
    return vec4<f16>(v);
}

fn floats_of(q: Quad) -> vec4<f32> {
    return vec4<f32>(q);
}
