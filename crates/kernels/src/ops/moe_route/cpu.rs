use std::sync::Arc;

use super::MoeRoute;
use crate::cpu::{CpuOp, Ctx, Input, Lane, PackedMatrix, Packer, Prepared, exp};

struct Step {
    op: MoeRoute,
    input: Input,
    router: Arc<PackedMatrix>,
}

pub(crate) fn prepare(op: &MoeRoute, packer: &mut Packer) -> Prepared {
    let input = Input::new(op.x, Some(op.norm), &[op.router], packer).and_floats(packer);
    let router = packer.matrix(op.router);
    packer.need(|s| &mut s.shared_work, &[router.n_out(), packer.max_rows()]);
    Ok(Box::new(Step { op: op.clone(), input, router }))
}

impl CpuOp for Step {
    fn stages(&self, cx: &Ctx) -> usize {
        self.input.stages(cx) + 2
    }

    fn run(&self, stage: usize, cx: &Ctx, lane: &mut Lane) {
        match stage.checked_sub(self.input.stages(cx)) {
            None => self.input.prepare(cx, lane),
            Some(0) => self.score(cx, lane),
            Some(_) => self.choose(cx, lane),
        }
    }
}

impl Step {
    fn score(&self, cx: &Ctx, lane: &mut Lane) {
        let experts = self.router.n_out();
        let (rows, columns) = (lane.items(cx.batch.rows()), lane.columns(experts));
        let x = self.input.view(cx, lane.normed, lane.row_words);
        for row in rows {
            // SAFETY: each row is written by one lane.
            unsafe { cx.row_mut(self.op.normed, row) }.copy_from_slice(x.floats.row(row));
        }
        self.router.for_products(cx.level, columns, x.operand(0), &mut lane.tiles, |row, first, products| {
            let at = row * experts + first;
            // SAFETY: these columns are this lane's.
            unsafe { cx.memory.work.slice_mut(at..at + products.len()) }.copy_from_slice(products);
        });
    }

    fn choose(&self, cx: &Ctx, lane: &Lane) {
        let experts = self.router.n_out();
        for row in lane.items(cx.batch.rows()) {
            // SAFETY: a row's scores were written in the stage before; in this one its lane alone uses them.
            let scores = unsafe { cx.memory.work.slice_mut(row * experts..(row + 1) * experts) };
            // SAFETY: each row is written by one lane.
            let routes = unsafe { cx.row_mut(self.op.routes, row) };
            choose(scores, self.op.renormalize, routes);
        }
    }
}

/// Writes the best experts' numbers and weights; the scores are used up.
fn choose(scores: &mut [f32], renormalize: bool, routes: &mut [f32]) {
    // Whatever bits a NaN has, it must not be taken for the mark below.
    scores.iter_mut().filter(|s| s.is_nan()).for_each(|s| *s = f32::NAN);
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let all: f32 = if renormalize { 0.0 } else { scores.iter().map(|&s| exp(s - max)).sum() };
    let (numbers, weights) = routes.split_at_mut(routes.len() / 2);
    // A score that was taken moves behind every number there is.
    let taken = f32::from_bits(u32::MAX);
    for (number, weight) in numbers.iter_mut().zip(&mut *weights) {
        let mut best = 0;
        for (expert, score) in scores.iter().enumerate().skip(1) {
            if score.total_cmp(&scores[best]).is_gt() {
                best = expert;
            }
        }
        (*number, *weight) = (best as f32, exp(scores[best] - max));
        scores[best] = taken;
    }
    let total = if renormalize { weights.iter().sum() } else { all };
    weights.iter_mut().for_each(|w| *w /= total);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_expert_is_chosen_twice_whatever_the_scores() {
        let nan = f32::from_bits(u32::MAX);
        for scores in [[nan; 4], [1.0, nan, f32::INFINITY, -1.0], [f32::NEG_INFINITY; 4], [0.0; 4]] {
            for renormalize in [false, true] {
                let mut routes = [0.0; 8];
                choose(&mut scores.clone(), renormalize, &mut routes);
                let mut numbers = routes[..4].to_vec();
                numbers.sort_by(f32::total_cmp);
                assert_eq!(numbers, [0.0, 1.0, 2.0, 3.0], "{scores:?}");
            }
        }
    }
}
