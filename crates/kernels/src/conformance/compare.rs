//! Runs a case on a backend and on `reference` and compares all memory that the program has.

use super::{Case, Failure, FailureKind, Tolerance, suite_of};
use crate::backend::{Backend, BackendError, Executor, KvType, Place};
use crate::batch::{BLOCK, Batch};
use crate::ops::Op;
use crate::program::{Buf, KvId, Matrix, Program, RecId, Rows};
use crate::reference::ReferenceWith;
use crate::rounding::{Activations, Rounding};

/// Checks that `backend` gets what `reference` gets on `case`, and writes nothing else. Returns the largest error as
/// a share of the tolerance.
pub fn check(backend: &dyn Backend, case: &Case) -> Result<f32, Failure> {
    let refused = |name| {
        let (op, case) = (suite_of(&case.program.ops()[0]), case.name.clone());
        move |error: BackendError| Failure::Refused { op, case, backend: name, error }
    };
    let reference = ReferenceWith(backend.activations());
    let mut oracle = reference.compile(&case.program, &case.limits).map_err(refused(reference.name()))?;
    let mut tried = backend.compile(&case.program, &case.limits).map_err(refused(backend.name()))?;
    let neighbours = neighbours(case, backend.activations());
    let places = places(&case.program);
    for &place in &places {
        let garbage = garbage(size(case, place));
        oracle.write(place, &garbage);
        tried.write(place, &garbage);
    }
    let whole = whole_batch(case);
    let mut share = 0.0f32;
    for (number, step) in case.steps.iter().enumerate() {
        for (place, values) in &step.inputs {
            oracle.write(*place, values);
            tried.write(*place, values);
        }
        let want_before = snapshot(oracle.as_mut(), &places, &whole).map_err(refused(reference.name()))?;
        let have_before = snapshot(tried.as_mut(), &places, &whole).map_err(refused(backend.name()))?;
        oracle.run(&step.batch).map_err(refused(reference.name()))?;
        tried.run(&step.batch).map_err(refused(backend.name()))?;
        let want = snapshot(oracle.as_mut(), &places, &whole).map_err(refused(reference.name()))?;
        let have = snapshot(tried.as_mut(), &places, &whole).map_err(refused(backend.name()))?;
        for (i, &place) in places.iter().enumerate() {
            let at = At { case, step: number, place, neighbours };
            if number == 0 {
                at.compare_stored(&want_before[i], &have_before[i])?;
            }
            at.compare_untouched(&want_before[i], &want[i], &have_before[i], &have[i])?;
            share = share.max(at.compare(&want[i], &have[i])?);
        }
    }
    Ok(share)
}

/// Every buffer that an op touches and all state.
fn places(program: &Program) -> Vec<Place> {
    let mut buffers: Vec<Buf> = Vec::new();
    for op in program.ops() {
        op.for_each_buffer(&mut |buf| buffers.extend((!buffers.contains(&buf)).then_some(buf)));
    }
    let state = program.state();
    let kv = (0..state.kv.len() as u32).map(KvId).flat_map(|kv| [Place::Keys(kv), Place::Values(kv)]);
    let recurrent = (0..state.recurrent.len() as u32).map(|i| Place::Recurrent(RecId(i)));
    buffers.into_iter().map(Place::Buffer).chain(kv).chain(recurrent).collect()
}

/// Elements that a place has room for.
fn size(case: &Case, place: Place) -> usize {
    let (limits, state) = (&case.limits, case.program.state());
    match place {
        Place::Buffer(buf) => {
            let spec = case.program.buffer(buf);
            spec.width * if spec.rows == Rows::Batch { limits.rows } else { limits.logit_rows }
        }
        Place::Keys(KvId(l)) | Place::Values(KvId(l)) => {
            let layer = state.kv[l as usize];
            limits.blocks * BLOCK * layer.kv_heads * layer.head_dim
        }
        Place::Recurrent(RecId(i)) => limits.slots * state.recurrent[i as usize],
    }
}

/// Values that nothing computes by chance and that f16 holds exactly.
fn garbage(n: usize) -> Vec<f32> {
    (0..n).map(|i| (513 + i % 251) as f32 * if i % 2 == 0 { 1.0 } else { -1.0 }).collect()
}

/// A batch of as many rows as there is room for: with it, reading a buffer shows the rows past the step's.
fn whole_batch(case: &Case) -> Batch {
    let mut batch = Batch::default();
    let table: Vec<u32> = (0..case.limits.blocks as u32).collect();
    batch.push_span(&vec![0; case.limits.rows], 0, &table, 0);
    (0..case.limits.logit_rows).for_each(|_| batch.want_logits(0));
    batch
}

fn snapshot(
    executor: &mut dyn Executor,
    places: &[Place],
    whole: &Batch,
) -> Result<Vec<Vec<f32>>, BackendError> {
    executor.run_ops(whole, 0..0)?;
    Ok(places.iter().map(|&place| executor.read(place)).collect())
}

/// What is being compared.
struct At<'a> {
    case: &'a Case,
    step: usize,
    place: Place,
    /// By how much more values that round to their neighbours may be off.
    neighbours: f32,
}

/// How many values of a row may round to the neighbouring F16. Of a thousand that are computed some lie so near to the middle
/// of two that a hair's difference decides.
const NEIGHBOURS: f32 = 2.0;

/// Where activations are rounded to F16 that the op itself has computed, one may come to be the neighbour of the reference's,
/// as a key may in a cache of F16: that moves a sum by 2⁻¹⁰ of its largest product. [`Tolerance::sum`] knows those by 4 · 2⁻²⁴
/// of them for every column. Activations that the case gives round to the same everywhere.
fn neighbours(case: &Case, activations: Activations) -> f32 {
    let computes = case.program.ops().iter().any(|op| match op {
        Op::NormLinear(op) => op.norm.is_some(),
        Op::Head(_) | Op::ChannelMix(_) | Op::Lora(_) => true,
        _ => false,
    });
    let is_rounded =
        |m: &&Matrix| m.segments.iter().any(|s| activations.rounding(s.dtype()) == Rounding::F16);
    let columns = case.program.matrices().iter().filter(is_rounded).map(|m| m.n_in).max();
    match columns {
        Some(columns) if computes => {
            let largest = case.tolerance.abs / Tolerance::sum(columns, 1.0).abs;
            NEIGHBOURS * largest / 1024.0
        }
        _ => 0.0,
    }
}

impl At<'_> {
    /// What rounding allows in a place. Values are copied into the cache, so only their storage rounds them, the
    /// same everywhere; keys are computed, and a hair's difference may round to the neighbouring f16.
    fn tolerance(&self) -> Tolerance {
        let mut computed = self.case.tolerance;
        computed.abs += self.neighbours;
        match (self.place, self.case.limits.kv_type) {
            (Place::Values(_), _) => Tolerance::EXACT,
            (Place::Keys(_), KvType::F16) => {
                Tolerance { abs: computed.abs + 6e-8, rel: computed.rel + 1.0 / 1024.0 }
            }
            _ => computed,
        }
    }

    fn failure(&self, kind: FailureKind) -> Failure {
        let place = match self.place {
            Place::Buffer(buf) => format!("buffer {} ({})", buf.0, self.case.program.buffer(buf).name),
            other => format!("{other:?}"),
        };
        let op = suite_of(&self.case.program.ops()[0]);
        Failure::Wrong { op, case: self.case.name.clone(), step: self.step, place, kind }
    }

    /// What was written before the first step is read back as the reference stores it.
    fn compare_stored(&self, want: &[f32], have: &[f32]) -> Result<(), Failure> {
        let sizes = [size(self.case, self.place), want.len(), have.len()];
        if sizes != [sizes[0]; 3] {
            return Err(self.failure(FailureKind::Size { want: sizes[0], have: sizes[2] }));
        }
        let wrong = (0..want.len()).find(|&i| want[i].to_bits() != have[i].to_bits());
        wrong.map_or(Ok(()), |index| {
            Err(self.failure(FailureKind::Stored { index, want: want[index], have: have[index] }))
        })
    }

    /// What the reference left as it was, the backend left as it was.
    fn compare_untouched(
        &self,
        want_before: &[f32],
        want: &[f32],
        have_before: &[f32],
        have: &[f32],
    ) -> Result<(), Failure> {
        let changed = |before: &[f32], after: &[f32], i: usize| before[i].to_bits() != after[i].to_bits();
        let wrong =
            (0..want.len()).find(|&i| changed(have_before, have, i) && !changed(want_before, want, i));
        wrong.map_or(Ok(()), |index| {
            Err(self.failure(FailureKind::Spilled { index, want: have_before[index], have: have[index] }))
        })
    }

    /// The largest error as a share of the tolerance.
    fn compare(&self, want: &[f32], have: &[f32]) -> Result<f32, Failure> {
        let tolerance = self.tolerance();
        let (mut wrong, mut share, mut worst) = (0, 0.0f32, None);
        for (index, (&want, &have)) in want.iter().zip(have).enumerate() {
            assert!(want.is_finite(), "case {}: the reference gives {want}", self.case.name);
            let error = (have - want).abs();
            if tolerance.allows(want, have) {
                share = if error > 0.0 { share.max(error / tolerance.at(want)) } else { share };
                continue;
            }
            wrong += 1;
            if worst.is_none_or(|(_, largest, _, _)| error > largest || error.is_nan()) {
                worst = Some((index, error, want, have));
            }
        }
        let Some((index, abs_error, want, have)) = worst else { return Ok(share) };
        let rel_error = abs_error / want.abs();
        Err(self.failure(FailureKind::Differs { wrong, index, want, have, abs_error, rel_error }))
    }
}
