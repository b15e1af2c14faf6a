//! A program on a device.

mod handing;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::Instant;

use super::compile::{Launch, bind, bindings_layout, compile};
use super::device::Gpu;
use super::memory;
use super::profiling::Profiling;
use super::record::{Angles, BufferId, Fill, Recording, kv_words};
use super::step::{ASKED, StepWords};
use crate::backend::{BackendError, Executor, KvType, Limits, MemoryUse, Place, check_batch, row_of_logits};
use crate::batch::{BLOCK, Batch};
use crate::cpu::{Level, Team};
use crate::ops::rope_table::angles;
use crate::profile::{DeviceWork, OpTime};
use crate::program::{Buf, KvId, Program, RecId, Rows};
use crate::sampling::cpu::CpuSampler;
use crate::sampling::gpu::{Asked, RECORD, most_asked, most_plain, most_weighed};
use crate::sampling::{SampleRow, Sampled};
use handing::{Choices, Foreseen, Pending};

/// Workgroups that there can be in one direction.
const MAX_GROUPS: u32 = 65_535;

pub(super) fn memory(recording: &Recording, program: &Program, limits: &Limits) -> MemoryUse {
    let mut memory = recording.memory();
    let step = StepWords::room(limits, recording.angles_of_row()).saturating_mul(4);
    // Logits that come to the host, for rows that need all of them.
    let logits = program.buffer(program.logits()).width.saturating_mul(4 * limits.logit_rows);
    let more = [
        // On the device and on the host.
        step.saturating_mul(2),
        chosen_bytes(limits),
        logits,
        logits.min(memory::PORTION),
        spare_bytes(program, limits),
        CpuSampler::bytes_for(choices(program), 1),
    ];
    memory.scratch = more.iter().fold(memory.scratch, |sum, &bytes| sum.saturating_add(bytes));
    memory
}

/// What comes back of a step at most.
fn chosen_bytes(limits: &Limits) -> usize {
    4 * most_plain(limits).saturating_add(RECORD * most_weighed(limits))
}

/// Tokens that can be chosen.
fn choices(program: &Program) -> usize {
    program.buffer(program.logits()).width.min(program.vocab())
}

/// What a copy of a block or slot goes through: a device copies between buffers only.
fn spare_bytes(program: &Program, limits: &Limits) -> usize {
    let state = program.state();
    let blocks = state.kv.iter().map(|layer| block_bytes(layer, limits.kv_type));
    let slots = state.recurrent.iter().map(|width| 4 * width);
    blocks.chain(slots).max().unwrap_or(0).max(4)
}

/// The cosines and sines of a position, as words.
fn angles_of<'a>(table: &Angles, program: &'a Program, position: u32) -> impl Iterator<Item = u32> + use<'a> {
    angles(program.vector(table.inv_freq), table.magnitude, position).map(f32::to_bits)
}

/// Bytes of a block's keys in a layer.
fn block_bytes(layer: &crate::KvLayer, kv_type: KvType) -> usize {
    4 * kv_words(kv_type, layer.head_dim) * layer.kv_heads * BLOCK
}

pub(super) struct GpuExecutor {
    gpu: Gpu,
    program: Program,
    limits: Limits,
    recording: Recording,
    buffers: Vec<wgpu::Buffer>,
    launches: Vec<Launch>,
    step: StepBuffer,
    spare: wgpu::Buffer,
    memory: MemoryUse,
    pending: RefCell<Pending>,
    /// Submissions that nobody has waited for.
    in_flight: RefCell<VecDeque<wgpu::SubmissionIndex>>,
    foreseen: RefCell<Option<Foreseen>>,
    /// The angles of positions that are likely to come next, of all tables.
    angles_ahead: HashMap<u32, Vec<u32>>,
    work: Cell<DeviceWork>,
    logits: OnceCell<Logits>,
    /// Of the last batch.
    rows: usize,
    logit_rows: usize,
    profiling: Option<Profiling>,
    asked: Asked,
    /// What is chosen comes back through it.
    chosen: wgpu::Buffer,
    /// For rows that are asked for more than their likeliest token.
    sampler: CpuSampler,
    /// Of the caller alone.
    team: Team,
}

/// Logits on the host.
struct Logits {
    values: Vec<f32>,
    /// Why they are no numbers.
    fault: Option<String>,
}

impl Logits {
    fn checked(&self) -> Result<&[f32], BackendError> {
        match &self.fault {
            Some(fault) => Err(BackendError::Device(fault.clone())),
            None => Ok(&self.values),
        }
    }
}

/// The step's words on the device.
struct StepBuffer {
    words: StepWords,
    /// How often a larger buffer was made.
    made: usize,
    first_bytes: usize,
    bindings_layout: wgpu::BindGroupLayout,
    buffer: wgpu::Buffer,
    bindings: wgpu::BindGroup,
}

impl GpuExecutor {
    pub fn new(
        gpu: Gpu,
        mut recording: Recording,
        program: &Program,
        limits: &Limits,
    ) -> Result<GpuExecutor, BackendError> {
        let memory = memory(&recording, program, limits);
        let buffers = memory::make(&gpu, &recording.buffers)?;
        // The weights are on the device now.
        recording.buffers.iter_mut().for_each(|spec| spec.fill = Fill::Zeros);
        let step = StepBuffer::new(&gpu, limits, StepWords::room(limits, recording.angles_of_row()));
        let launches = compile(&gpu, &recording, &buffers, &step.bindings_layout)?;
        let spare = memory::buffer(&gpu, spare_bytes(program, limits));
        let chosen = memory::staging(&gpu, chosen_bytes(limits) as u64);
        let sampler = CpuSampler::new(choices(program), 1)?;
        let team = Team::start(1).map_err(|_| BackendError::Memory { what: "a thread", bytes: 0 })?;
        gpu.faults.check()?;
        Ok(GpuExecutor {
            gpu,
            program: program.without_weights(&|_| false),
            limits: limits.clone(),
            recording,
            buffers,
            launches,
            step,
            spare,
            memory,
            pending: RefCell::default(),
            in_flight: RefCell::default(),
            foreseen: RefCell::default(),
            angles_ahead: HashMap::new(),
            work: Cell::default(),
            logits: OnceCell::new(),
            rows: 0,
            logit_rows: 0,
            profiling: None,
            asked: Asked::default(),
            chosen,
            sampler,
            team,
        })
    }

    /// The batch and the angles of its rows, for every table of the program, as the words of the step to come.
    fn write_batch(&mut self, batch: &Batch) {
        let (recording, program, known) = (&self.recording, &self.program, &self.angles_ahead);
        self.step.words.write(batch, |words| {
            let mut before = 0;
            for table in &recording.angles {
                for &position in batch.positions() {
                    match known.get(&position) {
                        Some(all) => words.extend_from_slice(&all[before..before + table.width]),
                        None => words.extend(angles_of(table, program, position)),
                    }
                }
                before += table.width;
            }
        });
        let most_asked = ASKED * most_asked(&self.limits);
        self.step.make_room(&self.gpu, self.step.words.of_batch() + most_asked);
    }

    /// Computes the angles of the positions at which sequences that write go on; for when the device is at work.
    fn foresee_angles(&mut self) {
        self.angles_ahead.clear();
        if self.step.words.spans() < self.rows {
            return;
        }
        for position in self.step.words.positions(self.rows) {
            let next = position.saturating_add(1);
            let tables = self.recording.angles.iter();
            let all = tables.flat_map(|table| angles_of(table, &self.program, next));
            self.angles_ahead.insert(next, all.collect());
        }
    }

    fn rows_of(&self, buf: Buf) -> usize {
        if self.program.buffer(buf).rows == Rows::Batch { self.rows } else { self.logit_rows }
    }

    fn fetch_words(&self, buffer: BufferId, bytes: usize) -> Result<Vec<u32>, BackendError> {
        self.hand_over(Choices::default())?;
        let begin = Instant::now();
        let words = memory::read_words(&self.gpu, memory::at(&self.buffers, buffer), bytes);
        self.note(|work| {
            let portions = bytes.div_ceil(memory::PORTION) as u64;
            work.submissions += portions;
            work.waits += portions;
            work.read_bytes += bytes as u64;
            work.waiting += begin.elapsed();
        });
        words
    }

    /// The rows of the last batch in a buffer.
    fn fetch_rows(&self, buf: Buf) -> Result<Vec<f32>, BackendError> {
        let slot = self.program.plan().slot_of(buf).expect("only buffers of ops are read");
        let n = self.rows_of(buf) * self.program.buffer(buf).width;
        let words = self.fetch_words(self.recording.slots[slot], 4 * n)?;
        Ok(words.into_iter().map(f32::from_bits).collect())
    }

    /// The logits of the last run, once they were asked for.
    fn fetched_logits(&self) -> &Logits {
        self.logits.get_or_init(|| {
            let n = self.logit_rows * self.program.buffer(self.program.logits()).width;
            match self.fetch_rows(self.program.logits()) {
                Ok(values) => Logits { values, fault: None },
                Err(error) => Logits { values: vec![f32::NAN; n], fault: Some(error.to_string()) },
            }
        })
    }

    /// Where a place lies, and how many bytes it has.
    fn find(&self, place: Place) -> (BufferId, usize) {
        let id = match place {
            Place::Buffer(buf) => {
                let slot = self.program.plan().slot_of(buf).expect("only buffers of ops are looked at");
                self.recording.slots[slot]
            }
            Place::Keys(KvId(layer)) => self.recording.keys[layer as usize],
            Place::Values(KvId(layer)) => self.recording.values[layer as usize],
            Place::Recurrent(RecId(i)) => self.recording.recurrent[i as usize],
        };
        (id, self.recording.buffers[id.0].bytes)
    }

    /// Chooses tokens by all of their rows' logits, which come to the host for it.
    fn choose_by_all(&mut self, rows: &[SampleRow], out: &mut Vec<Sampled>) -> Result<(), BackendError> {
        self.fetched_logits();
        let logits = self.logits.get().map_or(Ok(&[][..]), Logits::checked)?;
        let of_row = |row| row_of_logits(&self.program, logits, row).expect("the rows were looked at");
        self.sampler.sample(&self.team, Level::best(), &of_row, rows, out);
        Ok(())
    }

    /// What is asked for of the device, with the step that is still to be handed over.
    fn choose(&mut self) -> Result<Vec<u32>, BackendError> {
        let choices = Choices { plain: self.asked.plain(), weighed: self.asked.weighed() };
        self.step.words.ask(choices.plain, self.asked.blocks(), self.asked.words());
        let has_step = self.has_step();
        let handed = self.hand_over(choices)?;
        if let Some(shape) = handed.filter(|_| has_step && self.profiling.is_none()) {
            self.foresee(shape);
            self.foresee_angles();
        }
        match 4 * (choices.plain + choices.weighed * RECORD) as u64 {
            0 => Ok(Vec::new()),
            bytes => self.take(&self.chosen, bytes),
        }
    }

    fn copy(&self, buffer: BufferId, bytes: usize, from: u32, to: u32) {
        if from == to || bytes == 0 {
            return;
        }
        let buffer = memory::at(&self.buffers, buffer);
        let (bytes, from, to) = (bytes as u64, u64::from(from), u64::from(to));
        self.beside(|encoder| {
            encoder.copy_buffer_to_buffer(buffer, from * bytes, &self.spare, 0, bytes);
            encoder.copy_buffer_to_buffer(&self.spare, 0, buffer, to * bytes, bytes);
        });
    }
}

impl Executor for GpuExecutor {
    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.run_ops(batch, 0..self.program.ops().len())
    }

    fn run_ops(&mut self, batch: &Batch, ops: Range<usize>) -> Result<(), BackendError> {
        check_batch(&self.program, &self.limits, batch)?;
        // The step before must not find this one's batch.
        if self.has_step() {
            self.hand_over(Choices::default())?;
        }
        (self.rows, self.logit_rows) = (batch.rows(), batch.logit_rows().len());
        self.logits = OnceCell::new();
        if let Some(profiling) = &mut self.profiling {
            profiling.begin(ops.clone());
        }
        if batch.rows() == 0 || ops.is_empty() {
            return self.gpu.faults.check();
        }
        self.write_batch(batch);
        self.shape(Some(&ops), Choices::default())?;
        self.begin_step(ops);
        if self.profiling.is_some() {
            self.hand_over(Choices::default())?;
            let begin = Instant::now();
            if let Some(profiling) = &mut self.profiling {
                profiling.read(&self.gpu)?;
            }
            self.note(|work| {
                work.waits += 1;
                work.waiting += begin.elapsed();
            });
        }
        self.gpu.faults.check()
    }

    fn logits(&self) -> &[f32] {
        &self.fetched_logits().values
    }

    fn logits_of(&self, row: usize) -> Result<&[f32], BackendError> {
        row_of_logits(&self.program, self.fetched_logits().checked()?, row)
    }

    fn sample(&mut self, rows: &[SampleRow], out: &mut Vec<Sampled>) -> Result<(), BackendError> {
        out.clear();
        let (choices, have) = (choices(&self.program), self.logit_rows);
        if let Some(row) = rows.iter().find(|row| row.logits >= have) {
            return Err(BackendError::LogitRow { row: row.logits as u32, rows: have });
        }
        let width = self.program.buffer(self.program.logits()).width;
        self.asked.gather(rows, width, choices, &self.limits);
        let words = self.choose()?;
        let (mut left, mut places) = (Vec::new(), Vec::new());
        for (i, row) in rows.iter().enumerate() {
            let answer = self.asked.answer(i, row, &words);
            if answer.is_none() {
                left.push(*row);
                places.push(i);
            }
            out.push(answer.unwrap_or_default());
        }
        if !left.is_empty() {
            let mut sampled = Vec::new();
            self.choose_by_all(&left, &mut sampled)?;
            places.into_iter().zip(sampled).for_each(|(i, sampled)| out[i] = sampled);
        }
        self.gpu.faults.check()
    }

    fn memory(&self) -> MemoryUse {
        let grown = 2 * (self.step.buffer.size() as usize - self.step.first_bytes);
        MemoryUse { scratch: self.memory.scratch + grown, ..self.memory }
    }

    fn device_work(&self) -> DeviceWork {
        self.work.get()
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        for (i, layer) in self.program.state().kv.iter().enumerate() {
            let bytes = block_bytes(layer, self.limits.kv_type);
            self.copy(self.recording.keys[i], bytes, from, to);
            self.copy(self.recording.values[i], bytes, from, to);
        }
    }

    fn copy_slot(&mut self, from: u32, to: u32) {
        for (i, width) in self.program.state().recurrent.iter().enumerate() {
            self.copy(self.recording.recurrent[i], 4 * width, from, to);
        }
    }

    fn set_profiling(&mut self, on: bool) {
        let ops = self.program.ops().len();
        self.profiling = (on && self.gpu.can_time).then(|| Profiling::new(&self.gpu, ops));
    }

    fn op_times(&self) -> &[OpTime] {
        self.profiling.as_ref().map_or(&[], |profiling| &profiling.times)
    }

    fn read(&self, place: Place) -> Vec<f32> {
        Executor::fetch(self, place).expect("the GPU's memory can be read")
    }

    fn fetch(&self, place: Place) -> Result<Vec<f32>, BackendError> {
        if let Place::Buffer(buf) = place {
            return self.fetch_rows(buf);
        }
        let (id, bytes) = self.find(place);
        let words = self.fetch_words(id, bytes)?;
        Ok(match place {
            Place::Keys(KvId(l)) | Place::Values(KvId(l)) => {
                let layer = self.program.state().kv[l as usize];
                memory::kv_floats(self.limits.kv_type, layer.head_dim, &words)
            }
            _ => words.into_iter().map(f32::from_bits).collect(),
        })
    }

    fn write(&mut self, place: Place, values: &[f32]) {
        // What fails is told by the next step.
        let _ = self.hand_over(Choices::default());
        self.logits = OnceCell::new();
        let (id, _) = self.find(place);
        let words = match place {
            Place::Keys(KvId(l)) | Place::Values(KvId(l)) => {
                let layer = self.program.state().kv[l as usize];
                memory::kv_words(self.limits.kv_type, layer.head_dim, values)
            }
            _ => values.iter().map(|v| v.to_bits()).collect(),
        };
        memory::write_words(&self.gpu, memory::at(&self.buffers, id), 0, words.into_iter());
    }
}

impl StepBuffer {
    fn new(gpu: &Gpu, limits: &Limits, room: usize) -> StepBuffer {
        let bindings_layout = bindings_layout(gpu, &[false, false]);
        let (buffer, bindings) = StepBuffer::bound(gpu, &bindings_layout, room);
        let first_bytes = buffer.size() as usize;
        StepBuffer { words: StepWords::new(limits), made: 0, first_bytes, bindings_layout, buffer, bindings }
    }

    fn bound(gpu: &Gpu, layout: &wgpu::BindGroupLayout, words: usize) -> (wgpu::Buffer, wgpu::BindGroup) {
        let buffer = memory::buffer(gpu, 4 * words);
        let both = [buffer.as_entire_binding(), buffer.as_entire_binding()];
        let bindings = bind(gpu, layout, both);
        (buffer, bindings)
    }

    /// Makes a larger buffer where so many words have no room.
    fn make_room(&mut self, gpu: &Gpu, words: usize) {
        let have = self.buffer.size() as usize / 4;
        if words > have {
            self.made += 1;
            (self.buffer, self.bindings) = StepBuffer::bound(gpu, &self.bindings_layout, words.max(2 * have));
        }
    }

    fn upload(&self, gpu: &Gpu) {
        memory::write_words(gpu, &self.buffer, 0, self.words.words().iter().copied());
    }
}

#[cfg(test)]
#[path = "../../tests/gpu_at_hand/mod.rs"]
mod gpu_at_hand;
#[cfg(test)]
mod tests;
