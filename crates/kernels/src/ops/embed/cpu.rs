use super::Embed;
use crate::cpu::{CpuOp, Ctx, Lane, Packer, Prepared, Table, normalize};

struct Step {
    op: Embed,
    table: Table,
    positions: Option<Table>,
}

pub(crate) fn prepare(op: &Embed, packer: &mut Packer) -> Prepared {
    let width = packer.program.buffer(op.out).width;
    packer.need(|s| &mut s.work, &[width]);
    let positions = op.positions.map(|positions| packer.table(positions));
    Ok(Box::new(Step { op: op.clone(), table: packer.table(op.table), positions }))
}

impl CpuOp for Step {
    fn stages(&self, _cx: &Ctx) -> usize {
        1
    }

    fn run(&self, _stage: usize, cx: &Ctx, lane: &mut Lane) {
        let rows = lane.items(cx.batch.rows());
        let scratch = &mut lane.work[..cx.program.buffer(self.op.out).width];
        for row in rows {
            // SAFETY: each row is written by one lane.
            let out = unsafe { cx.row_mut(self.op.out, row) };
            self.table.decode_row(cx, cx.batch.tokens()[row] as usize, out);
            out.iter_mut().for_each(|v| *v *= self.op.scale);
            if let Some(positions) = &self.positions {
                positions.decode_row(cx, cx.batch.positions()[row] as usize, scratch);
                out.iter_mut().zip(&*scratch).for_each(|(v, p)| *v += p);
            }
            if let Some(norm) = &self.op.norm {
                scratch.copy_from_slice(out);
                normalize(cx.level, cx.program, norm, scratch, out);
            }
        }
    }
}
