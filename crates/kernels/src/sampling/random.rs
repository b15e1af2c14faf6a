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

#[cfg(test)]
mod tests {
    use super::*;

    /// These numbers are for ever: what a seed says today it says tomorrow, on every backend.
    #[test]
    fn a_seed_and_a_position_give_the_number_that_they_always_gave() {
        let pinned = [
            (0, 0, 0x14_e0db_a5e9_a32f),
            (0, 1, 0x16_7054_60be_8829),
            (1, 0, 0x0b_c835_610e_872c),
            (42, 7, 0x17_82d4_7a99_890c),
            (42, 100_000, 0x1f_b095_a702_c447),
            (u64::MAX, u64::MAX, 0x08_8a03_1c60_b021),
        ];
        for (seed, position, expected) in pinned {
            assert_eq!(bits(seed, position), expected, "{seed}, {position}");
        }
        assert_eq!(uniform(0, 0), 0.652_448_486_374_032_2);
    }
}
