// Rounded rows that were made by a dispatch before: the lower halves of all units, the upper ones, then two words for each.

const KEPT: u32 = 2u * STEPS + (STEPS + 1u) / 2u;

fn activations(t: u32, row: u32, g: u32, start: u32) -> Activations {
    let at = row * KEPT;
    let two = kept[at + 2u * STEPS + (g >> 1u)];
    return unit_of_codes(kept[at + g], kept[at + STEPS + g], select(two.xy, two.zw, (g & 1u) == 1u));
}
