// Sums of a lane alone: of a group's 16 by 16 blocks every lane of 32 has 2 rows of 4 outputs.

//$ part SUMS
let member_row = lane % 32u / 4u * 2u;
let member_out = lane % 4u * 4u;
var sums: array<f32, ROW_BLOCKS * OUT_BLOCKS * 8u>;
//$ part MULTIPLY
for (var q = 0u; q < 8u * UNITS_AT_ONCE / ACROSS_COLUMNS; q++) {
    var values: array<vec4<f32>, ROW_BLOCKS * 2u>;
    for (var r = 0u; r < ROW_BLOCKS * 2u; r++) {
        values[r] = floats_of(tile_rows[rows_from + (r / 2u * 16u + member_row + r % 2u) * PITCH + q]);
    }
    for (var c = 0u; c < OUT_BLOCKS * 4u; c++) {
        let w = floats_of(tile_outs[outs_from + (c / 4u * 16u + member_out + c % 4u) * PITCH + q]);
        for (var r = 0u; r < ROW_BLOCKS * 2u; r++) {
            let v = values[r];
            let at = r * OUT_BLOCKS * 4u + c;
            sums[at] = fma(w.w, v.w, fma(w.z, v.z, fma(w.y, v.y, fma(w.x, v.x, sums[at]))));
        }
    }
}
//$ part STORE
for (var e = 0u; e < 8u; e++) {
    blocks[block + (member_row + e / 4u) * 16u + member_out + e % 4u] =
        sums[(@iu * 2u + e / 4u) * OUT_BLOCKS * 4u + @ju * 4u + e % 4u];
}
