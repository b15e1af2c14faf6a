//! A program on a device.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::PoisonError;

use super::device::Gpu;
use super::memory;
use super::record::{BufferId, Count, Dispatch, FIRST_TABLES, Fill, KernelText, Recording, View, kv_words};
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

/// A kernel in its place.
struct Launch {
    op: usize,
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    counts: [Count; 3],
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
    submissions: Cell<usize>,
    logits: OnceCell<Vec<f32>>,
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

/// The batch on the device.
struct StepBuffers {
    layout: StepLayout,
    bindings_layout: wgpu::BindGroupLayout,
    step: wgpu::Buffer,
    tables: wgpu::Buffer,
    bindings: wgpu::BindGroup,
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
            submissions: Cell::new(0),
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
            self.submissions.set(self.submissions.get() + 1);
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

    fn groups(&self, counts: [Count; 3]) -> [u32; 3] {
        counts.map(|count| {
            let groups = match count {
                Count::Fixed(n) => n,
                Count::Rows(per) => self.rows.div_ceil(per),
                Count::LogitRows(per) => self.logit_rows.div_ceil(per),
                Count::Spans => self.step.spans(),
                Count::Asked => self.asked.len(),
            };
            u32::try_from(groups).unwrap_or(u32::MAX)
        })
    }

    fn launch_all(&self, ops: Range<usize>) -> Result<(), BackendError> {
        let is_wanted = |launch: &&Launch| ops.contains(&launch.op);
        if let Some(groups) = self
            .launches
            .iter()
            .filter(is_wanted)
            .map(|l| self.groups(l.counts))
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
                        .filter(|launch| launch.op == op)
                        .for_each(|launch| self.launch(&mut pass, launch));
                }
                profiling.resolve(encoder);
            }
        });
        Ok(())
    }

    fn launch(&self, pass: &mut wgpu::ComputePass, launch: &Launch) {
        let [x, y, z] = self.groups(launch.counts);
        if x == 0 || y == 0 || z == 0 {
            return;
        }
        pass.set_pipeline(&launch.pipeline);
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
        // What is written to a buffer is there before anything that is handed over later, so the step before goes first.
        self.submit();
        if let Some(profiling) = &mut self.profiling {
            profiling.begin(ops.clone());
        }
        if batch.rows() == 0 || ops.is_empty() {
            return self.gpu.faults.check();
        }
        self.step.write(&self.gpu, batch);
        self.write_angles(batch);
        self.launch_all(ops)?;
        if self.profiling.is_some() {
            self.submit();
            if let Some(profiling) = &mut self.profiling {
                profiling.read(&self.gpu)?;
            }
        }
        self.gpu.faults.check()
    }

    fn logits(&self) -> &[f32] {
        // What went wrong is told by the next call that can tell; until then there are no numbers.
        self.logits.get_or_init(|| {
            let n = self.logit_rows * self.program.buffer(self.program.logits()).width;
            self.fetch_rows(self.program.logits()).unwrap_or_else(|_| vec![f32::NAN; n])
        })
    }

    fn logits_of(&self, row: usize) -> Result<&[f32], BackendError> {
        row_of_logits(&self.program, self.logits(), row)
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
        self.logits();
        let logits = self.logits.get().map_or(&[][..], Vec::as_slice);
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
        StepBuffers { layout, bindings_layout, step, tables, bindings, words, table_words, bytes }
    }

    fn spans(&self) -> usize {
        self.words.get(1).map_or(0, |&n| n as usize)
    }

    fn write(&mut self, gpu: &Gpu, batch: &Batch) {
        self.layout.write(batch, &mut self.words, &mut self.table_words);
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

fn bindings_layout(gpu: &Gpu, is_written: &[bool]) -> wgpu::BindGroupLayout {
    let entry = |(binding, &is_written): (usize, &bool)| wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: !is_written },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let entries: Vec<_> = is_written.iter().enumerate().map(entry).collect();
    gpu.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}

fn bind<'a>(
    gpu: &Gpu,
    layout: &wgpu::BindGroupLayout,
    resources: impl IntoIterator<Item = wgpu::BindingResource<'a>>,
) -> wgpu::BindGroup {
    let numbered = resources.into_iter().zip(0..);
    let entries: Vec<_> =
        numbered.map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource }).collect();
    gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
}

/// Compiles the kernels and binds their buffers.
fn compile(
    gpu: &Gpu,
    recording: &Recording,
    buffers: &[wgpu::Buffer],
    step_layout: &wgpu::BindGroupLayout,
) -> Result<Vec<Launch>, BackendError> {
    let mut layouts: HashMap<&[bool], wgpu::BindGroupLayout> = HashMap::new();
    for kernel in &recording.kernels {
        layouts.entry(&kernel.is_written).or_insert_with(|| bindings_layout(gpu, &kernel.is_written));
    }
    let pipelines = pipelines(gpu, &recording.kernels, &|kernel| {
        [Some(step_layout), Some(&layouts[kernel.is_written.as_slice()])]
    });
    gpu.faults.check()?;
    let launch = |dispatch: &Dispatch| {
        let resource = |view: &View| {
            let (buffer, size) = (memory::at(buffers, view.buffer), wgpu::BufferSize::new(view.bytes as u64));
            wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: view.offset as u64, size })
        };
        let layout = &layouts[recording.kernels[dispatch.kernel].is_written.as_slice()];
        Launch {
            op: dispatch.op,
            pipeline: pipelines[dispatch.kernel].clone(),
            bindings: bind(gpu, layout, dispatch.views.iter().map(resource)),
            counts: dispatch.counts,
        }
    };
    Ok(recording.dispatches.iter().map(launch).collect())
}

/// The kernels compiled, by all of the machine's threads; those that were compiled before are not again.
fn pipelines<'a>(
    gpu: &Gpu,
    kernels: &[KernelText],
    layouts: &(dyn Fn(&KernelText) -> [Option<&'a wgpu::BindGroupLayout>; 2] + Sync),
) -> Vec<wgpu::ComputePipeline> {
    let known = || gpu.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
    let new: Vec<&KernelText> = kernels.iter().filter(|kernel| !known().contains_key(&kernel.text)).collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let share = new.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for share in new.chunks(share) {
            scope.spawn(move || {
                for kernel in share {
                    let pipeline = pipeline(gpu, kernel, layouts(kernel));
                    known().insert(kernel.text.clone(), pipeline);
                }
            });
        }
    });
    kernels.iter().map(|kernel| known()[&kernel.text].clone()).collect()
}

fn pipeline(
    gpu: &Gpu,
    kernel: &KernelText,
    layouts: [Option<&wgpu::BindGroupLayout>; 2],
) -> wgpu::ComputePipeline {
    let label = Some(kernel.label);
    let source = wgpu::ShaderSource::Wgsl(kernel.text.as_str().into());
    let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
    let layout = gpu.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label,
        bind_group_layouts: &layouts,
        immediate_size: 0,
    });
    gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label,
        layout: Some(&layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    })
}

/// Times of ops by the device's own clock: a pass for each op, so a little slower than without.
struct Profiling {
    times: Vec<OpTime>,
    ops: Range<usize>,
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
}

impl Profiling {
    fn new(gpu: &Gpu, ops: usize) -> Profiling {
        let count = 2 * ops as u32;
        let size = 8 * u64::from(count);
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let buffer = |usage| {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        Profiling {
            times: vec![OpTime::default(); ops],
            ops: 0..0,
            queries,
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            staging: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
        }
    }

    fn begin(&mut self, ops: Range<usize>) {
        self.times.fill(OpTime::default());
        self.ops = ops;
    }

    fn pass(&self, op: usize) -> wgpu::ComputePassDescriptor<'_> {
        let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(2 * op as u32),
            end_of_pass_write_index: Some(2 * op as u32 + 1),
        });
        wgpu::ComputePassDescriptor { label: None, timestamp_writes }
    }

    fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        let range = 2 * self.ops.start as u32..2 * self.ops.end as u32;
        let bytes = 8 * u64::from(range.end - range.start);
        encoder.resolve_query_set(&self.queries, range, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, bytes);
    }

    fn read(&mut self, gpu: &Gpu) -> Result<(), BackendError> {
        let mut words = Vec::new();
        memory::take(gpu, &self.staging, 16 * self.ops.len() as u64, &mut words)?;
        let period = f64::from(gpu.queue.get_timestamp_period());
        for (op, words) in self.ops.clone().zip(words.chunks_exact(4)) {
            let tick = |i: usize| u64::from(words[i]) | u64::from(words[i + 1]) << 32;
            self.times[op].total = (tick(2).saturating_sub(tick(0)) as f64 * period) as u64;
        }
        Ok(())
    }
}
