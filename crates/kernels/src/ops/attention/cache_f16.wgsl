// Keys and values as halves, two in a word. What fills the last word of an odd head is zero, and so is the query there.

// Four elements as they are stored.
alias Four = vec2<u32>;

fn floats_of(four: Four) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(four.x), unpack2x16float(four.y));
}

// One of the two pairs.
fn pair_of(four: Four, second: bool) -> vec2<f32> {
    return unpack2x16float(select(four.x, four.y, second));
}
