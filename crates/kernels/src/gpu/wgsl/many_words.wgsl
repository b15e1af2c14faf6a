// Four halves in two words, for devices that do not compute in halves.

alias Quad = vec2<u32>;

fn quad_of(v: vec4<f32>) -> Quad {
    return vec2<u32>(halves_of(v.x, v.y), halves_of(v.z, v.w));
}

fn floats_of(q: Quad) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(q.x), unpack2x16float(q.y));
}
