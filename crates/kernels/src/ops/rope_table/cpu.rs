use super::RopeTable;
use crate::cpu::{CpuOp, Ctx, Lane, Prepared};

pub(crate) fn prepare(op: &RopeTable) -> Prepared {
    Ok(Box::new(op.clone()))
}

impl CpuOp for RopeTable {
    fn stages(&self, _cx: &Ctx) -> usize {
        1
    }

    /// Once per step for all layers: precise rather than fast.
    fn run(&self, _stage: usize, cx: &Ctx, lane: &mut Lane) {
        let inv_freq = cx.vector(self.inv_freq);
        let magnitude = f64::from(self.magnitude);
        for row in lane.items(cx.batch.rows()) {
            // SAFETY: each row is written by one lane.
            let (cosines, sines) = unsafe { cx.row_mut(self.out, row) }.split_at_mut(inv_freq.len());
            // The angle is rounded to f32 before its cosine is taken, as the families' reference implementations do.
            let position = cx.batch.positions()[row] as f32;
            for ((cos, sin), f) in cosines.iter_mut().zip(sines).zip(inv_freq) {
                let angle = f64::from(position * f);
                *cos = (angle.cos() * magnitude) as f32;
                *sin = (angle.sin() * magnitude) as f32;
            }
        }
    }
}
