//! Counted randomness: a number depends on the seed and the position alone, never on what was drawn before.

/// The increment of SplitMix64, 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Random bits of a draw.
pub(super) const BITS: u32 = 53;

/// SplitMix64's output function, a bijection whose every output bit depends on every input bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// [`BITS`] random bits: output number `position` of a SplitMix64 that starts at `mix(seed)`, so that neighbouring seeds
/// start far from one another.
pub(super) fn bits(seed: u64, position: u64) -> u64 {
    let state = mix(seed.wrapping_add(GAMMA)).wrapping_add(GAMMA.wrapping_mul(position.wrapping_add(1)));
    mix(state) >> (u64::BITS - BITS)
}

/// The same as a number in [0, 1).
pub fn uniform(seed: u64, position: u64) -> f64 {
    bits(seed, position) as f64 / (1u64 << BITS) as f64
}
