//! The CPU backend: one persistent team of threads walks the whole program, with a barrier after every stage.

mod clock;
mod context;
mod dots;
mod floats;
mod groups;
mod input;
mod integers;
mod kv;
mod math;
mod measure;
mod memory;
mod pack;
mod panels;
mod recorder;
mod region;
mod rows;
mod simd;
mod team;
mod vector;
mod visits;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::{Backend, BackendError, Executor, Limits, MemoryUse, Place, check_batch, row_of_logits};
use crate::batch::Batch;
use crate::profile::OpTime;
use crate::program::{Buf, KvId, Program, RecId, Rows};
use crate::rounding::Activations;
use crate::sampling::cpu::CpuSampler;
use crate::sampling::{SampleRow, Sampled};

pub use measure::Speed;

pub(crate) use clock::{Clock, Part};
pub(crate) use context::{CpuOp, Ctx, Lane, Prepared};
pub(crate) use input::{Input, Operand};
pub(crate) use kv::{Cells, KvPool, Stored, padded};
pub(crate) use memory::Shared;
pub(crate) use pack::{PackedMatrix, Packer, Table, Tiles, overlap, share, tile};
pub(crate) use rows::Rows as InputRows;
pub(crate) use simd::{Isa, Kernel, Level, WIDTH, prefetch};
pub(crate) use team::{Member, Team};
pub(crate) use vector::{activate, gate, mean_and_scale, normalize, shift_mix, soft_cap};
pub(crate) use visits::Visits;
pub(crate) use {math::exp, math::sigmoid, math::tanh};

use memory::{LaneMemory, Memory, ScratchSizes};
use recorder::Recorder;

/// More lanes than any machine has cores.
const MAX_THREADS: usize = 1024;

/// Computes on `threads` threads, of which the caller of `run` is one.
pub struct CpuBackend {
    threads: usize,
    level: Level,
    team: Mutex<Option<Arc<Team>>>,
}

impl CpuBackend {
    pub fn new(threads: usize) -> CpuBackend {
        let threads = threads.clamp(1, MAX_THREADS);
        CpuBackend { threads, level: Level::best(), team: Mutex::new(None) }
    }

    /// At the best level that multiplies activations as they are with weights that are floats.
    pub fn with_exact_floats(threads: usize) -> CpuBackend {
        CpuBackend { level: Level::best().without_pairs(), ..CpuBackend::new(threads) }
    }

    /// The names of the instruction levels that this processor has, from the plainest on.
    pub fn levels() -> impl Iterator<Item = &'static str> {
        Level::available().map(Level::name)
    }

    /// With kernels of the level of this name, if this processor has it.
    pub fn with_level(threads: usize, level: &str) -> Option<CpuBackend> {
        Some(CpuBackend { level: Level::named(level)?, ..CpuBackend::new(threads) })
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The instruction level that kernels run at, found out on this processor.
    pub fn level(&self) -> &'static str {
        self.level.name()
    }

    /// The team, started when it is first needed.
    fn team(&self) -> Result<Arc<Team>, BackendError> {
        let mut team = self.team.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(team) = &*team {
            return Ok(team.clone());
        }
        // What a thread fails to start for is the memory of its stack or a limit on it.
        let refused = |_| BackendError::Memory { what: "threads", bytes: self.threads << 21 };
        Ok(team.insert(Arc::new(Team::start(self.threads).map_err(refused)?)).clone())
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn activations(&self) -> Activations {
        if self.level.has_pairs() { Activations::RoundedToBf16 } else { Activations::Rounded }
    }

    fn memory(&self, program: &Program, limits: &Limits) -> MemoryUse {
        const TOO_MUCH: usize = usize::MAX;
        let measured =
            Packer::measuring(program, limits, self.threads, self.activations()).and_then(|mut packer| {
                // The steps are not wanted, only what they ask for.
                prepare(&mut packer)?;
                Ok((packer.weight_bytes(), packer.finish()?))
            });
        let Ok((weights, sizes)) = measured else {
            return MemoryUse { weights: TOO_MUCH, kv: TOO_MUCH, recurrent: TOO_MUCH, scratch: TOO_MUCH };
        };
        let state = program.state();
        let recurrent = state.recurrent_elements_per_slot().saturating_mul(limits.slots);
        MemoryUse {
            weights,
            kv: kv::cache_bytes(limits.kv_type, limits.blocks, &state.kv).unwrap_or(TOO_MUCH),
            recurrent: recurrent.saturating_mul(size_of::<f32>()),
            scratch: scratch_bytes(program, limits, &sizes, self.threads)
                .saturating_add(CpuSampler::bytes_for(choices(program), self.threads)),
        }
    }

    fn compile(&self, program: &Program, limits: &Limits) -> Result<Box<dyn Executor>, BackendError> {
        let team = self.team()?;
        let mut packer = Packer::new(program, limits, &team, self.activations())?;
        let steps = prepare(&mut packer)?;
        let (weight_bytes, program_left) = (packer.weight_bytes(), packer.program_left());
        let sizes = packer.finish()?;
        let memory = take_memory(program, limits, &sizes)?;
        let lanes = (0..team.lanes()).map(|_| LaneMemory::zeroed(&sizes)).collect::<Result<_, _>>()?;
        let sampler = CpuSampler::new(choices(program), team.lanes())?;
        Ok(Box::new(CpuExecutor {
            program: program_left,
            limits: limits.clone(),
            level: self.level,
            team,
            steps,
            memory,
            lanes,
            sampler,
            weight_bytes,
            recorder: Recorder::default(),
            rows: 0,
            logit_rows: 0,
        }))
    }
}

/// The program's steps, for which the packer packs weights or finds out what they need.
fn prepare(packer: &mut Packer) -> Result<Vec<Box<dyn CpuOp>>, BackendError> {
    packer.program.ops().iter().map(|op| context::prepare(op, packer)).collect()
}

/// Bytes of activations and of what ops make between their stages.
fn scratch_bytes(program: &Program, limits: &Limits, sizes: &ScratchSizes, lanes: usize) -> usize {
    let (per_row, per_logit_row) = program.scratch_widths();
    let activations = per_row.saturating_mul(limits.rows);
    let logits = per_logit_row.saturating_mul(limits.logit_rows);
    let shared = [sizes.shared_normed, sizes.shared_words, sizes.shared_interleaved, sizes.shared_work];
    let elements = [activations, logits].iter().chain(&shared).fold(0usize, |sum, &n| sum.saturating_add(n));
    let shared = elements.saturating_mul(size_of::<f32>());
    shared.saturating_add(LaneMemory::bytes_of(sizes).saturating_mul(lanes))
}

fn take_memory(program: &Program, limits: &Limits, sizes: &ScratchSizes) -> Result<Memory, BackendError> {
    let product = |what, factors: &[usize]| {
        let elements = factors.iter().try_fold(1usize, |product, &f| product.checked_mul(f));
        elements.ok_or(BackendError::Memory { what, bytes: usize::MAX })
    };
    let rows_of = |rows| if rows == Rows::Batch { limits.rows } else { limits.logit_rows };
    let slots = program.plan().slots().iter().map(|slot| {
        let what = "activations";
        Shared::zeroed(product(what, &[slot.width, rows_of(slot.rows)])?, what)
    });
    let [keys, values] = KvPool::zeroed(limits.kv_type, limits.blocks, &program.state().kv)?;
    let recurrent = program.state().recurrent.iter().map(|&width| {
        let what = "the recurrent state";
        Shared::zeroed(product(what, &[width, limits.slots])?, what)
    });
    Ok(Memory {
        slots: slots.collect::<Result<_, _>>()?,
        keys,
        values,
        recurrent: recurrent.collect::<Result<_, _>>()?,
        normed: Shared::zeroed(sizes.shared_normed, "scratch")?,
        words: Shared::zeroed(sizes.shared_words, "scratch")?,
        interleaved: Shared::zeroed(sizes.shared_interleaved, "scratch")?,
        work: Shared::zeroed(sizes.shared_work, "scratch")?,
    })
}

/// Tokens that can be chosen.
fn choices(program: &Program) -> usize {
    program.buffer(program.logits()).width.min(program.vocab())
}

struct CpuExecutor {
    program: Program,
    limits: Limits,
    level: Level,
    team: Arc<Team>,
    steps: Vec<Box<dyn CpuOp>>,
    memory: Memory,
    lanes: Vec<LaneMemory>,
    sampler: CpuSampler,
    weight_bytes: usize,
    recorder: Recorder,
    /// Of the last batch.
    rows: usize,
    logit_rows: usize,
}

impl Executor for CpuExecutor {
    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.run_ops(batch, 0..self.steps.len())
    }

    fn run_ops(&mut self, batch: &Batch, ops: Range<usize>) -> Result<(), BackendError> {
        check_batch(&self.program, &self.limits, batch)?;
        (self.rows, self.logit_rows) = (batch.rows(), batch.logit_rows().len());
        if batch.rows() == 0 {
            self.recorder.settle(0..0);
            return Ok(());
        }
        let (steps, lanes, recorder, first) =
            (&self.steps[ops.clone()], &self.lanes, &self.recorder, ops.start);
        let cx = Ctx { program: &self.program, batch, level: self.level, memory: &self.memory };
        self.team.run(&|member| {
            // SAFETY: every member has its own number, and `&mut self` keeps other runs away.
            let mut lane = unsafe { Lane::new(member.id, member.of, &lanes[member.id]) };
            let recording = recorder.is_on();
            if recording {
                // That lanes have to wake up is no op's time.
                member.barrier();
                recorder.start(lane.id, first, &mut lane.clock);
            }
            for (i, step) in steps.iter().enumerate() {
                for stage in 0..step.stages(&cx) {
                    step.run(stage, &cx, &mut lane);
                    lane.clock.lap(Part::Main);
                    member.barrier();
                    lane.clock.lap(Part::Idle);
                }
                if recording {
                    recorder.end(lane.id, first + i, &mut lane.clock);
                }
            }
        });
        self.recorder.settle(ops);
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        self.buffer_rows(self.program.logits())
    }

    fn logits_of(&self, row: usize) -> Result<&[f32], BackendError> {
        row_of_logits(&self.program, self.logits(), row)
    }

    fn sample(&mut self, rows: &[SampleRow], out: &mut Vec<Sampled>) -> Result<(), BackendError> {
        rows.iter().try_for_each(|row| self.logits_of(row.logits).map(drop))?;
        let program = &self.program;
        // SAFETY: the lanes that choose write no activations.
        let logits = unsafe { used_rows(program, &self.memory, program.logits(), self.logit_rows) };
        let row = |row| row_of_logits(program, logits, row).expect("the rows were looked at");
        self.sampler.sample(&self.team, self.level, &row, rows, out);
        Ok(())
    }

    fn memory(&self) -> MemoryUse {
        let floats = |of: &[Shared<f32>]| of.iter().map(Shared::bytes).sum::<usize>();
        let m = &self.memory;
        let shared = m.normed.bytes() + m.words.bytes() + m.interleaved.bytes() + m.work.bytes();
        let lanes: usize = self.lanes.iter().map(LaneMemory::bytes).sum();
        MemoryUse {
            weights: self.weight_bytes,
            kv: m.keys.first().map_or(0, KvPool::bytes_of_all),
            recurrent: floats(&m.recurrent),
            scratch: floats(&m.slots) + shared + lanes + self.sampler.bytes(),
        }
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        if let Some(pool) = self.memory.keys.first() {
            // SAFETY: `&mut self` keeps runs away.
            unsafe { pool.copy_block_of_all(from as usize, to as usize) };
        }
    }

    fn copy_slot(&mut self, from: u32, to: u32) {
        for (state, &width) in self.memory.recurrent.iter().zip(&self.program.state().recurrent) {
            // SAFETY: `&mut self` keeps runs away.
            unsafe { state.copy_part(width, from as usize, to as usize) };
        }
    }

    fn set_profiling(&mut self, on: bool) {
        self.recorder.switch(on, self.steps.len());
    }

    fn op_times(&self) -> &[OpTime] {
        self.recorder.times()
    }

    fn read(&self, place: Place) -> Vec<f32> {
        match place {
            Place::Buffer(buf) => self.buffer_rows(buf).to_vec(),
            // SAFETY: no lane runs while the executor is borrowed here.
            Place::Keys(KvId(layer)) => unsafe { self.memory.keys[layer as usize].read() },
            // SAFETY: as above.
            Place::Values(KvId(layer)) => unsafe { self.memory.values[layer as usize].read() },
            Place::Recurrent(RecId(i)) => {
                let state = &self.memory.recurrent[i as usize];
                // SAFETY: no lane runs while the executor is borrowed here.
                unsafe { state.slice(0..state.len()) }.to_vec()
            }
        }
    }

    fn write(&mut self, place: Place, values: &[f32]) {
        match place {
            Place::Buffer(buf) => {
                let slot = self.program.plan().slot_of(buf).expect("only buffers of ops are written");
                self.memory.slots[slot].as_slice()[..values.len()].copy_from_slice(values);
            }
            // SAFETY: `&mut self` keeps runs away.
            Place::Keys(KvId(layer)) => unsafe { self.memory.keys[layer as usize].write(values) },
            // SAFETY: as above.
            Place::Values(KvId(layer)) => unsafe { self.memory.values[layer as usize].write(values) },
            Place::Recurrent(RecId(i)) => {
                self.memory.recurrent[i as usize].as_slice()[..values.len()].copy_from_slice(values);
            }
        }
    }
}

impl CpuExecutor {
    fn buffer_rows(&self, buf: Buf) -> &[f32] {
        let is_of_batch = self.program.buffer(buf).rows == Rows::Batch;
        let rows = if is_of_batch { self.rows } else { self.logit_rows };
        // SAFETY: no lane runs while the executor is borrowed here.
        unsafe { used_rows(&self.program, &self.memory, buf, rows) }
    }
}

/// The first rows of a buffer.
///
/// # Safety
/// While the slice lives no lane writes the buffer.
unsafe fn used_rows<'a>(program: &Program, memory: &'a Memory, buf: Buf, rows: usize) -> &'a [f32] {
    let slot = program.plan().slot_of(buf).expect("only buffers of ops are read");
    // SAFETY: the caller's promise.
    unsafe { memory.slots[slot].slice(0..rows * program.buffer(buf).width) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::KvType;
    use crate::conformance::programs::{Kind, draw};
    use crate::conformance::{OPS, check_op};
    use crate::ops::Op;

    /// The suite outside runs at the best level alone.
    #[test]
    fn every_level_conforms() {
        for level in Level::available().chain([Level::ScalarPairs(simd::Scalar)]) {
            let backend = CpuBackend { level, ..CpuBackend::new(2) };
            OPS.iter().for_each(|op| check_op(&backend, op));
        }
    }

    /// Barriers of each of a program's two layers, when a span of `rows` rows begins at `start`. Those of norms after a block,
    /// which few families have, are left out.
    fn barriers(program: &Program, start: usize, rows: usize) -> Vec<usize> {
        let blocks = (start + rows).div_ceil(crate::BLOCK);
        let limits = Limits { rows, logit_rows: 1, blocks, slots: 1, kv_type: KvType::F16 };
        let mut packer = Packer::measuring(program, &limits, 2, Activations::Rounded).expect("it fits");
        let steps = prepare(&mut packer).expect("all ops have steps");
        let memory =
            take_memory(program, &limits, &packer.finish().expect("it fits")).expect("there is room");
        let mut batch = Batch::default();
        let table: Vec<u32> = (0..blocks as u32).collect();
        batch.push_span(&vec![0; rows], start as u32, &table, 0);
        batch.want_logits(0);
        let cx = Ctx { program, batch: &batch, level: Level::best(), memory: &memory };
        let of_layers = program.ops().iter().zip(&steps).filter_map(|(op, step)| match op {
            Op::Embed(_) | Op::RopeTable(_) | Op::Head(_) => None,
            Op::LinearResidual(op) => Some(step.stages(&cx) - usize::from(op.post_norm.is_some())),
            _ => Some(step.stages(&cx)),
        });
        let of_layers: Vec<usize> = of_layers.collect();
        of_layers.chunks_exact(of_layers.len() / 2).map(|layer| layer.iter().sum()).collect()
    }

    /// ARCHITECTURE.md tells these numbers. Many rows are made ready for the products of experts only where those are
    /// quantized, so the most of many drawn programs counts.
    #[test]
    fn barriers_are_few() {
        for (kind, one, many, deep) in
            [(Kind::Dense, 6, 10, 11), (Kind::Experts, 8, 13, 14), (Kind::Recurrent, 9, 17, 17)]
        {
            let programs: Vec<Program> = (0..40).map(|seed| draw(kind, seed)).collect();
            let most = |start, rows| programs.iter().flat_map(|p| barriers(p, start, rows)).max();
            assert!(programs.iter().all(|p| barriers(p, 7, 1) == [one; 2]), "{kind:?}");
            assert_eq!((most(0, 40), most(300, 40)), (Some(many), Some(deep)), "{kind:?}");
        }
    }
}
