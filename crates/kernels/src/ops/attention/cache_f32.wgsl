// Keys and values as floats.

// Four elements as they are stored.
alias Four = vec4<u32>;

fn floats_of(four: Four) -> vec4<f32> {
    return bitcast<vec4<f32>>(four);
}

// One of the two pairs.
fn pair_of(four: Four, second: bool) -> vec2<f32> {
    return bitcast<vec2<f32>>(select(four.xy, four.zw, second));
}
