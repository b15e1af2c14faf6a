use super::Embed;
use crate::backend::BackendError;
use crate::gpu::{Count, Kernel, Recorder, linear};

/// Lanes that make a row.
const LANES: usize = 128;

pub(crate) fn record(op: &Embed, recorder: &mut Recorder) -> Result<(), BackendError> {
    let width = recorder.width(op.out);
    // The rows that every piece of the table has; every token finds its row in one of them.
    for piece in recorder.pieces(op.table)? {
        let mut kernel = Kernel::new("embed", LANES);
        kernel.read("weights", "vec4<u32>", piece.view);
        let out = recorder.buf(op.out);
        kernel.write("y", "f32", out);
        kernel.size("WIDTH", width);
        kernel.size("UNITS", piece.layout.units);
        kernel.size("STRIDE", piece.layout.stride / 4);
        kernel.size("FIRST", piece.rows.start);
        kernel.size("END", piece.rows.end);
        kernel.float("SCALE", op.scale);
        kernel.flag("IS_NORMED", op.norm.is_some());
        kernel.part(&piece.layout.decoder("weights", ""));
        match op.positions {
            Some(positions) => {
                let table = recorder.one_piece(positions)?;
                kernel.read("positions", "vec4<u32>", table.view);
                kernel.size("P_STRIDE", table.layout.stride / 4);
                kernel.part(&table.layout.decoder("positions", "p_"));
                kernel.part(
                    "fn learned(row: u32, q: u32) -> vec4<f32> {\n    \
                     return p_quad(p_unit_of(position_of(row) * P_STRIDE, q / 8u), q % 8u);\n}",
                );
            }
            None => kernel.part("fn learned(row: u32, q: u32) -> vec4<f32> { return vec4<f32>(0.0); }"),
        }
        kernel.part("fn raw_at(row: u32, i: u32) -> f32 { return y[row * WIDTH + i]; }");
        linear::write_norm(recorder, &mut kernel, op.norm.as_ref(), "", "WIDTH");
        kernel.part(include_str!("embed.wgsl"));
        recorder.dispatch(&kernel, [Count::Rows(1), Count::Fixed(1), Count::Fixed(1)]);
    }
    Ok(())
}
