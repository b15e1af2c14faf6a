// Logits as whole numbers in the order of likelihood. Bits are compared, for a device may take it that there are no floats
// that are no numbers, and that those near zero are zero.

// What stands for a logit that is no number or +∞, and for one of −∞, which no token is chosen for.
const WRONG: u32 = 0xffffffffu;
const NEVER: u32 = 0u;
const NONE: u32 = 0xffffffffu;

fn rank_of(bits: u32) -> u32 {
    if ((bits & 0x7fffffffu) > 0x7f800000u || bits == 0x7f800000u) {
        return WRONG;
    }
    if (bits == 0xff800000u) {
        return NEVER;
    }
    // The two zeros are equal.
    let number = select(bits, 0u, bits == 0x80000000u);
    return select(number | 0x80000000u, ~number, (number >> 31u) == 1u);
}

// The bits of the logit of a rank.
fn bits_of(rank: u32) -> u32 {
    return select(~rank, rank & 0x7fffffffu, (rank >> 31u) == 1u);
}

var<workgroup> best_ranks: array<u32, WG>;
var<workgroup> best_tokens: array<u32, WG>;

// The best of the lanes' ranks and the lowest token of it, for all of them.
fn best_of(lane: u32, rank: u32, token: u32) -> vec2<u32> {
    workgroupBarrier();
    best_ranks[lane] = rank;
    best_tokens[lane] = token;
    workgroupBarrier();
    for (var step = WG / 2u; step > 0u; step = step / 2u) {
        if (lane < step) {
            let other = vec2<u32>(best_ranks[lane + step], best_tokens[lane + step]);
            if (other.x > best_ranks[lane] || (other.x == best_ranks[lane] && other.y < best_tokens[lane])) {
                best_ranks[lane] = other.x;
                best_tokens[lane] = other.y;
            }
        }
        workgroupBarrier();
    }
    return vec2<u32>(best_ranks[0], best_tokens[0]);
}
