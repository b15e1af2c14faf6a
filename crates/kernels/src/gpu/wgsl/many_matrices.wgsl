// Sums of a group together, in matrices of 16 by 16.

//$ part SUMS
@repeat i ROW_BLOCKS
@repeat j OUT_BLOCKS
var sums_@i_@j = coop_mat16x16<f32, C>();
@end
@end
//$ part MULTIPLY
@repeat k HALF_UNITS
@repeat i ROW_BLOCKS
let row_at_@k_@i = rows_from + @iu * 16u * PITCH + @ku * 4u;
let rows_@k_@i = coopLoadT<coop_mat16x16<f16, A>>(&tile_rows[row_at_@k_@i], PITCH);
@end
@repeat j OUT_BLOCKS
let out_at_@k_@j = outs_from + @ju * 16u * PITCH + @ku * 4u;
let outs_@k_@j = coopLoad<coop_mat16x16<f16, B>>(&tile_outs[out_at_@k_@j], PITCH);
@end
@repeat i ROW_BLOCKS
@repeat j OUT_BLOCKS
sums_@i_@j = coopMultiplyAdd(rows_@k_@i, outs_@k_@j, sums_@i_@j);
@end
@end
@end
//$ part STORE
let block_stride_@i_@j = 16u;
coopStoreT(sums_@i_@j, &blocks[block], block_stride_@i_@j);
