// The lane's share of the sums of a matrix of floats: every so-many-th vector of four words. Weights are read before they are used.

fn #add_up(part: Part, lane: u32, first_out: u32, first_row: u32, count: u32) {
    @repeat o OUTS
    let row@o = part.at + min(first_out + @ou, part.outs - 1u) * #VECTORS;
    @repeat t TILE
    var sum@o_@t = 0.0;
    @end
    @end
    for (var first = lane % LANES; first < #VECTORS; first += STEPS * LANES) {
        @repeat s STEPS
        @repeat o OUTS
        let w@s_@o = weights[row@o + min(first + @su * LANES, #VECTORS - 1u)];
        @end
        @end
        @repeat s STEPS
        let v@s = first + @su * LANES;
        if (v@s < #VECTORS) {
            @repeat t TILE
            @repeat p PARTS
            let x@t_@p = input_quad(part, first_row + min(@tu, count - 1u), 4u * (PARTS * v@s + @pu));
            @end
            @repeat o OUTS
            @repeat p PARTS
            sum@o_@t = with_products(#floats_@p(w@s_@o), x@t_@p, sum@o_@t);
            @end
            @end
            @end
        }
        @end
    }
    @repeat o OUTS
    @repeat t TILE
    sums[(@ou * TILE + @tu) * WG + lane] = sum@o_@t;
    @end
    @end
}
