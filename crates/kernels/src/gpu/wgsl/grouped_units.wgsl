// The lane's share of the sums of a quantized matrix: every so-many-th unit of 32 columns.

fn #add_up(part: Part, lane: u32, first_out: u32, first_row: u32, count: u32) {
    @repeat o OUTS
    @repeat t TILE
    var sum@o_@t = 0.0;
    @end
    @end
    for (var g = lane % LANES; g < #UNITS; g += LANES) {
        @repeat o OUTS
        let unit@o = #unit_of(part.at + min(first_out + @ou, part.outs - 1u) * #STRIDE, g);
        @end
        for (var k = 0u; k < 8u; k++) {
            @repeat o OUTS
            let w@o = #quad(unit@o, k);
            @end
            @repeat t TILE
            let x@t = input_quad(part, first_row + min(@tu, count - 1u), g * 32u + 4u * k);
            @repeat o OUTS
            sum@o_@t = with_products(w@o, x@t, sum@o_@t);
            @end
            @end
        }
    }
    @repeat o OUTS
    @repeat t TILE
    sums[(@ou * TILE + @tu) * WG + lane] = sum@o_@t;
    @end
    @end
}
