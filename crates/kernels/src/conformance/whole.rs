//! What a backend says of a program as a whole and does outside of its steps: the memory it takes, and copies of state.

use super::data::Numbers;
use super::programs::{self, Kind};
use crate::backend::{Backend, BackendError, Executor, KvType, Limits, Place};
use crate::program::{KvId, Program, RecId};

const KINDS: [Kind; 3] = [Kind::Dense, Kind::Experts, Kind::Recurrent];

/// Models of all kinds, with limits of all sizes.
fn drawn() -> impl Iterator<Item = (String, Program, Limits)> {
    let all = KINDS.into_iter().flat_map(|kind| (0..6).map(move |seed| (kind, seed)));
    all.map(|(kind, seed)| {
        let mut numbers = Numbers::new(seed);
        let limits = Limits {
            rows: 1 + numbers.below(70),
            logit_rows: 1 + numbers.below(5),
            blocks: 2 + numbers.below(40),
            slots: 2 + numbers.below(4),
            kv_type: if numbers.below(2) == 0 { KvType::F32 } else { KvType::F16 },
        };
        (format!("{kind:?} {seed}, {limits:?}"), programs::draw(kind, seed), limits)
    })
}

/// Checks that a compiled program holds exactly what the backend said it would. The error says where it does not.
pub fn check_memory(backend: &dyn Backend) -> Result<(), String> {
    for (name, program, limits) in drawn() {
        let said = backend.memory(&program, &limits);
        let taken = compiled(backend, &name, &program, &limits)?.memory();
        if said != taken {
            return Err(format!("{name}: {said:?} was said, {taken:?} is taken"));
        }
    }
    Ok(())
}

/// Checks that copies of blocks and slots copy all of their state and nothing else. The error says where they do not.
pub fn check_copies(backend: &dyn Backend) -> Result<(), String> {
    for (name, program, limits) in drawn() {
        let mut executor = compiled(backend, &name, &program, &limits)?;
        let (last_block, last_slot) = (limits.blocks as u32 - 1, limits.slots as u32 - 1);
        let mut kept: Vec<(Place, Vec<f32>)> = Vec::new();
        for place in state_of(&program) {
            // Whole numbers that f16 holds, different in neighbouring parts and places.
            let n = executor.read(place).len();
            let values: Vec<f32> = (0..n).map(|i| ((i * 7 + kept.len() * 13) % 2039) as f32).collect();
            executor.write(place, &values);
            kept.push((place, values));
        }
        for (from, to) in [(0, last_block), (last_block, 0), (0, 0)] {
            executor.copy_block(from, to);
            let is_kv = |place| matches!(place, Place::Keys(_) | Place::Values(_));
            let changed = kept.iter_mut().filter(|(place, _)| is_kv(*place));
            changed.for_each(|(_, values)| copy(values, limits.blocks, from, to));
            compare(executor.as_ref(), &kept)
                .map_err(|why| format!("{name}: block {from} to {to}: {why}"))?;
        }
        for (from, to) in [(last_slot, 0), (0, last_slot), (0, 0)] {
            executor.copy_slot(from, to);
            let changed = kept.iter_mut().filter(|(place, _)| matches!(place, Place::Recurrent(_)));
            changed.for_each(|(_, values)| copy(values, limits.slots, from, to));
            compare(executor.as_ref(), &kept).map_err(|why| format!("{name}: slot {from} to {to}: {why}"))?;
        }
    }
    Ok(())
}

fn compiled(
    backend: &dyn Backend,
    name: &str,
    program: &Program,
    limits: &Limits,
) -> Result<Box<dyn Executor>, String> {
    let refused = |error: BackendError| format!("{name}: {} refused it: {error}", backend.name());
    backend.compile(program, limits).map_err(refused)
}

fn state_of(program: &Program) -> impl Iterator<Item = Place> {
    let state = program.state();
    let kv = (0..state.kv.len() as u32).map(KvId).flat_map(|kv| [Place::Keys(kv), Place::Values(kv)]);
    kv.chain((0..state.recurrent.len() as u32).map(|i| Place::Recurrent(RecId(i))))
}

/// Copies one of `parts` equal parts over another.
fn copy(values: &mut [f32], parts: usize, from: u32, to: u32) {
    let (width, from) = (values.len() / parts, from as usize);
    values.copy_within(from * width..(from + 1) * width, to as usize * width);
}

fn compare(executor: &dyn Executor, kept: &[(Place, Vec<f32>)]) -> Result<(), String> {
    for (place, want) in kept {
        let have = executor.read(*place);
        if let Some(at) = (0..want.len()).find(|&at| have.get(at) != Some(&want[at])) {
            return Err(format!("{place:?} has {:?} at {at}, not {}", have.get(at), want[at]));
        }
    }
    Ok(())
}
