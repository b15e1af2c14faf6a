//! A program on a device.

use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Range;

use super::attended::Attended;
use super::compile::{Launch, bind, bindings_layout, compile};
use super::device::Gpu;
use super::memory;
use super::profiling::Profiling;
use super::record::{BufferId, Count, FIRST_TABLES, Fill, Recording, kv_words};
use super::step::StepLayout;
use crate::backend::{BackendError, Executor, KvType, Limits, MemoryUse, Place, check_batch, row_of_logits};
use crate::batch::{BLOCK, Batch};
use crate::cpu::{Level, Team};
use crate::ops::rope_table::angles;
use crate::profile::OpTime;
use crate::program::{Buf, KvId, Program, RecId, Rows};
use crate::sampling::cpu::CpuSampler;
use crate::sampling::gpu::Asked;
use crate::sampling::{SampleRow, Sampled};

/// Workgroups that there can be in one direction.
const MAX_GROUPS: u32 = 65_535;

pub(super) fn memory(recording: &Recording, program: &Program, limits: &Limits) -> MemoryUse {
    let mut memory = recording.memory();
    let step = 4 * (StepLayout::new(limits).words() + FIRST_TABLES + limits.logit_rows.max(1));
    let more = [step, spare_bytes(program, limits), CpuSampler::bytes_for(choices(program), 1)];
    memory.scratch = more.iter().fold(memory.scratch, |sum, &bytes| sum.saturating_add(bytes));
    memory
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
    step: StepBuffers,
    spare: wgpu::Buffer,
    memory: MemoryUse,
    /// Work that is written down but not handed over.
    pending: RefCell<Option<wgpu::CommandEncoder>>,
    /// Whether a step's ops are part of it.
    has_run: Cell<bool>,
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

/// The batch on the device.
struct StepBuffers {
    layout: StepLayout,
    bindings_layout: wgpu::BindGroupLayout,
    step: wgpu::Buffer,
    tables: wgpu::Buffer,
    bindings: wgpu::BindGroup,
    attended: Attended,
    words: Vec<u32>,
    table_words: Vec<u32>,
    bytes: Vec<u8>,
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
        let step = StepBuffers::new(&gpu, limits);
        let launches = compile(&gpu, &recording, &buffers, &step.bindings_layout)?;
        let spare = memory::buffer(&gpu, spare_bytes(program, limits));
        let chosen = memory::staging(&gpu, 4 * limits.logit_rows.max(1) as u64);
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
            pending: RefCell::new(None),
            has_run: Cell::new(false),
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

    /// Hands over what is written down.
    fn submit(&self) {
        if let Some(encoder) = self.pending.borrow_mut().take() {
            self.gpu.queue.submit([encoder.finish()]);
            self.has_run.set(false);
        }
    }

    fn with_encoder<T>(&self, write: impl FnOnce(&mut wgpu::CommandEncoder) -> T) -> T {
        let mut pending = self.pending.borrow_mut();
        let new = || self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        write(pending.get_or_insert_with(new))
    }

    /// The angles of the step's rows, for every table of the program.
    fn write_angles(&self, batch: &Batch) {
        for table in &self.recording.angles {
            let inv_freq = self.program.vector(table.inv_freq);
            let floats =
                batch.positions().iter().flat_map(|&position| angles(inv_freq, table.magnitude, position));
            let buffer = memory::at(&self.buffers, table.buffer);
            memory::write_words(&self.gpu, buffer, 0, floats.map(f32::to_bits));
        }
    }

    /// None where this is not for steps of so many rows.
    fn groups(&self, launch: &Launch) -> [u32; 3] {
        let of_logits = launch.counts.iter().any(|count| matches!(count, Count::LogitRows(_)));
        if !launch.rows.contains(if of_logits { &self.logit_rows } else { &self.rows }) {
            return [0; 3];
        }
        launch.counts.map(|count| {
            let groups = match count {
                Count::Fixed(n) => n,
                Count::Rows(per) => self.rows.div_ceil(per),
                Count::LogitRows(per) => self.logit_rows.div_ceil(per),
                Count::Pairs { of_row, per, experts } => {
                    let pairs = self.rows * of_row;
                    pairs / per + experts.min(pairs)
                }
                Count::Spans => self.step.spans(),
                Count::Tiles => self.step.attended.tiles.len(),
                Count::Items => self.step.attended.items.len(),
                Count::Splits => self.step.attended.splits.len(),
                Count::Asked => self.asked.len(),
            };
            u32::try_from(groups).unwrap_or(u32::MAX)
        })
    }

    fn launch_all(&self, ops: Range<usize>) -> Result<(), BackendError> {
        let is_wanted = |launch: &&Launch| ops.contains(&launch.op) && launch.beside.fits(launch.op, &ops);
        if let Some(groups) = self
            .launches
            .iter()
            .filter(is_wanted)
            .map(|launch| self.groups(launch))
            .find(|groups| groups.iter().any(|&n| n > MAX_GROUPS))
        {
            return Err(BackendError::TooMany {
                what: "workgroups of a kernel",
                have: groups.into_iter().max().unwrap_or(0) as usize,
                room: MAX_GROUPS as usize,
            });
        }
        self.with_encoder(|encoder| match &self.profiling {
            None => {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                self.launches.iter().filter(is_wanted).for_each(|launch| self.launch(&mut pass, launch));
            }
            Some(profiling) => {
                for op in ops.clone() {
                    let mut pass = encoder.begin_compute_pass(&profiling.pass(op));
                    self.launches
                        .iter()
                        .filter(is_wanted)
                        .filter(|launch| launch.op == op)
                        .for_each(|launch| self.launch(&mut pass, launch));
                }
                profiling.resolve(encoder);
            }
        });
        Ok(())
    }

    fn launch(&self, pass: &mut wgpu::ComputePass, launch: &Launch) {
        let [x, y, z] = self.groups(launch);
        if x == 0 || y == 0 || z == 0 {
            return;
        }
        pass.set_pipeline(launch.pipeline.get());
        pass.set_bind_group(0, &self.step.bindings, &[]);
        pass.set_bind_group(1, &launch.bindings, &[]);
        pass.dispatch_workgroups(x, y, z);
    }

    fn rows_of(&self, buf: Buf) -> usize {
        if self.program.buffer(buf).rows == Rows::Batch { self.rows } else { self.logit_rows }
    }

    fn fetch(&self, buffer: BufferId, bytes: usize) -> Result<Vec<u32>, BackendError> {
        self.submit();
        memory::read_words(&self.gpu, memory::at(&self.buffers, buffer), bytes)
    }

    /// The rows of the last batch in a buffer.
    fn fetch_rows(&self, buf: Buf) -> Result<Vec<f32>, BackendError> {
        let slot = self.program.plan().slot_of(buf).expect("only buffers of ops are read");
        let n = self.rows_of(buf) * self.program.buffer(buf).width;
        let words = self.fetch(self.recording.slots[slot], 4 * n)?;
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

    /// The likeliest tokens that are asked for, with the step that is still to be handed over.
    fn choose(&self) -> Result<Vec<u32>, BackendError> {
        let mut words = Vec::new();
        let (count, choice) = (self.asked.len(), self.recording.choice.as_ref());
        let Some(choice) = choice.filter(|_| count > 0) else { return Ok(words) };
        let asked = memory::at(&self.buffers, choice.asked.buffer);
        memory::write_words(&self.gpu, asked, 0, self.asked.words());
        let op = self.program.ops().len();
        let bytes = 4 * count as u64;
        self.with_encoder(|encoder| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.launches
                .iter()
                .filter(|launch| launch.op == op)
                .for_each(|launch| self.launch(&mut pass, launch));
            drop(pass);
            let chosen = memory::at(&self.buffers, choice.chosen.buffer);
            encoder.copy_buffer_to_buffer(chosen, 0, &self.chosen, 0, bytes);
        });
        self.submit();
        memory::take(&self.gpu, &self.chosen, bytes, &mut words)?;
        Ok(words)
    }

    fn copy(&self, buffer: BufferId, bytes: usize, from: u32, to: u32) {
        if from == to || bytes == 0 {
            return;
        }
        let buffer = memory::at(&self.buffers, buffer);
        let (bytes, from, to) = (bytes as u64, u64::from(from), u64::from(to));
        self.with_encoder(|encoder| {
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
        (self.rows, self.logit_rows) = (batch.rows(), batch.logit_rows().len());
        self.logits = OnceCell::new();
        // What is written to a buffer is there before all that is handed over later: the step before must not find this one's
        // batch. Copies of state before the step read nothing of it, and go with it.
        if self.has_run.get() {
            self.submit();
        }
        if let Some(profiling) = &mut self.profiling {
            profiling.begin(ops.clone());
        }
        if batch.rows() == 0 || ops.is_empty() {
            return self.gpu.faults.check();
        }
        self.step.write(&self.gpu, batch);
        self.write_angles(batch);
        self.launch_all(ops)?;
        self.has_run.set(true);
        if self.profiling.is_some() {
            self.submit();
            if let Some(profiling) = &mut self.profiling {
                profiling.read(&self.gpu)?;
            }
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
        self.asked.gather(rows, choices, self.limits.logit_rows);
        let chosen = self.choose()?;
        let answers = rows.iter().map(|row| self.asked.answer(row, choices, &chosen));
        out.extend(answers.map(|token| Sampled { token: token.flatten(), logprobs: None }));
        let is_left = |row: &&SampleRow| self.asked.answer(row, choices, &chosen).is_none();
        let left: Vec<SampleRow> = rows.iter().filter(is_left).copied().collect();
        if left.is_empty() {
            return Ok(());
        }
        self.fetched_logits();
        let logits = self.logits.get().map_or(Ok(&[][..]), Logits::checked)?;
        let of_row = |row| row_of_logits(&self.program, logits, row).expect("the rows were looked at");
        let mut sampled = Vec::new();
        self.sampler.sample(&self.team, Level::best(), &of_row, &left, &mut sampled);
        let mut sampled = sampled.into_iter();
        for (row, to) in rows.iter().zip(out) {
            if self.asked.answer(row, choices, &chosen).is_none() {
                *to = sampled.next().expect("a token for every row that was left");
            }
        }
        self.gpu.faults.check()
    }

    fn memory(&self) -> MemoryUse {
        self.memory
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
        let what = "the GPU's memory can be read";
        match place {
            Place::Buffer(buf) => self.fetch_rows(buf).expect(what),
            _ => {
                let (id, bytes) = self.find(place);
                let words = self.fetch(id, bytes).expect(what);
                match place {
                    Place::Keys(KvId(l)) | Place::Values(KvId(l)) => {
                        let layer = self.program.state().kv[l as usize];
                        memory::kv_floats(self.limits.kv_type, layer.head_dim, &words)
                    }
                    _ => words.into_iter().map(f32::from_bits).collect(),
                }
            }
        }
    }

    fn write(&mut self, place: Place, values: &[f32]) {
        self.submit();
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

impl StepBuffers {
    fn new(gpu: &Gpu, limits: &Limits) -> StepBuffers {
        let layout = StepLayout::new(limits);
        let bindings_layout = bindings_layout(gpu, &[false, false]);
        let step = memory::buffer(gpu, 4 * layout.words());
        let tables = memory::buffer(gpu, 4 * FIRST_TABLES);
        let bindings = bind(gpu, &bindings_layout, [step.as_entire_binding(), tables.as_entire_binding()]);
        let (words, table_words, bytes) = (Vec::new(), Vec::new(), Vec::new());
        let attended = Attended::new(limits);
        StepBuffers { layout, bindings_layout, step, tables, bindings, attended, words, table_words, bytes }
    }

    fn spans(&self) -> usize {
        self.words.get(1).map_or(0, |&n| n as usize)
    }

    fn write(&mut self, gpu: &Gpu, batch: &Batch) {
        self.layout.write(batch, &mut self.attended, &mut self.words, &mut self.table_words);
        let have = self.tables.size() as usize;
        if 4 * self.table_words.len() > have {
            // Tables may share blocks, so they may be longer together than there are blocks.
            self.tables = memory::buffer(gpu, (4 * self.table_words.len()).max(2 * have));
            let resources = [self.step.as_entire_binding(), self.tables.as_entire_binding()];
            self.bindings = bind(gpu, &self.bindings_layout, resources);
        }
        for (words, to) in [(&self.words, &self.step), (&self.table_words, &self.tables)] {
            self.bytes.clear();
            self.bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            gpu.queue.write_buffer(to, 0, &self.bytes);
        }
    }
}
