//! How work is handed over. A step's ops and the choice of its tokens are one pass in one submission, with copies of state before
//! and after as command buffers of their own. What is encoded depends on the step's shape alone, so while the device works on a
//! step the next one is encoded: if it comes with the same shape, only its words are still to be written.

use std::ops::Range;
use std::time::Instant;

use super::super::compile::Launch;
use super::super::memory;
use super::super::record::Count;
use super::{GpuExecutor, MAX_GROUPS};
use crate::backend::BackendError;
use crate::sampling::gpu::RECORD;

/// Submissions under way that nobody waits for; with more of them a step would be known to have failed only long after.
const IN_FLIGHT: usize = 2;

/// What is written down but not handed over.
#[derive(Default)]
pub(super) struct Pending {
    /// Copies of state that come before the step.
    before: Option<wgpu::CommandEncoder>,
    /// Which ops of the program the step runs.
    ops: Option<Range<usize>>,
    after: Option<wgpu::CommandEncoder>,
}

/// How many choices are made with a step.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Choices {
    /// Of the likeliest token alone.
    pub plain: usize,
    pub weighed: usize,
}

impl Choices {
    fn are_none(self) -> bool {
        self == Choices::default()
    }
}

/// Everything that a step's commands depend on.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// Workgroups of every kernel of the program, with those that choose.
    groups: Vec<[u32; 3]>,
    choices: Choices,
    /// Which buffer the step's words lie in.
    words: usize,
}

/// A step's commands, before it is known.
pub(super) struct Foreseen {
    shape: Shape,
    commands: wgpu::CommandBuffer,
}

impl GpuExecutor {
    pub(super) fn begin_step(&self, ops: Range<usize>) {
        self.pending.borrow_mut().ops = Some(ops);
    }

    pub(super) fn has_step(&self) -> bool {
        self.pending.borrow().ops.is_some()
    }

    /// Writes down something beside the step, before it or after it.
    pub(super) fn beside(&self, write: impl FnOnce(&mut wgpu::CommandEncoder)) {
        let mut pending = self.pending.borrow_mut();
        let pending = &mut *pending;
        let place = if pending.ops.is_some() { &mut pending.after } else { &mut pending.before };
        write(place.get_or_insert_with(|| self.encoder()));
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// None where this is not for steps of so many rows, or of another op.
    fn groups(&self, launch: &Launch, ops: Option<&Range<usize>>, choices: Choices) -> [u32; 3] {
        let is_choice = launch.op == self.program.ops().len();
        if !is_choice {
            let of_logits = launch.counts.iter().any(|count| matches!(count, Count::LogitRows(_)));
            let rows = if of_logits { &self.logit_rows } else { &self.rows };
            let is_run = |ops: &Range<usize>| ops.contains(&launch.op) && launch.beside.fits(launch.op, ops);
            if !ops.is_some_and(is_run) || !launch.rows.contains(rows) {
                return [0; 3];
            }
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
                Count::Spans => self.step.words.spans(),
                Count::Tiles => self.step.words.attended().tiles.len(),
                Count::Items => self.step.words.attended().items.len(),
                Count::Splits => self.step.words.attended().splits.len(),
                Count::Asked => choices.plain + choices.weighed,
                Count::Weighed => choices.weighed,
            };
            u32::try_from(groups).unwrap_or(u32::MAX)
        })
    }

    /// The shape of a step of these ops, if there are any, in which so many choices are asked for.
    pub(super) fn shape(&self, ops: Option<&Range<usize>>, choices: Choices) -> Result<Shape, BackendError> {
        let groups = self.launches.iter().map(|launch| self.groups(launch, ops, choices));
        let groups: Vec<[u32; 3]> =
            groups.map(|groups| if groups.contains(&0) { [0; 3] } else { groups }).collect();
        match groups.iter().flatten().max() {
            Some(&most) if most > MAX_GROUPS => Err(BackendError::TooMany {
                what: "workgroups of a kernel",
                have: most as usize,
                room: MAX_GROUPS as usize,
            }),
            _ => Ok(Shape { groups, choices, words: self.step.made }),
        }
    }

    /// Launches the kernels of these ops and returns how many there were.
    fn launch(&self, pass: &mut wgpu::ComputePass, shape: &Shape, ops: Range<usize>) -> u64 {
        let mut count = 0;
        pass.set_bind_group(0, &self.step.bindings, &[]);
        for (launch, &[x, y, z]) in self.launches.iter().zip(&shape.groups) {
            if x > 0 && ops.contains(&launch.op) {
                pass.set_pipeline(launch.pipeline.get());
                pass.set_bind_group(1, &launch.bindings, &[]);
                pass.dispatch_workgroups(x, y, z);
                count += 1;
            }
        }
        count
    }

    /// A step of this shape as one pass, and what brings its choices back.
    fn encode(&self, shape: &Shape) -> wgpu::CommandBuffer {
        let mut encoder = self.encoder();
        if shape.groups.iter().any(|groups| groups[0] > 0) {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.launch(&mut pass, shape, 0..self.program.ops().len() + 1);
        }
        if let Some(choice) = self.recording.choice {
            let Choices { plain, weighed } = shape.choices;
            let (plain, weighed) = (4 * plain as u64, 4 * (weighed * RECORD) as u64);
            for (view, at, bytes) in [(choice.chosen, 0, plain), (choice.drawn, plain, weighed)] {
                if bytes > 0 {
                    let buffer = memory::at(&self.buffers, view.buffer);
                    encoder.copy_buffer_to_buffer(buffer, 0, &self.chosen, at, bytes);
                }
            }
        }
        encoder.finish()
    }

    /// A step of this shape as a pass for each op, so that each can be timed.
    fn encode_timed(&self, shape: &Shape, ops: &Range<usize>) -> Option<wgpu::CommandBuffer> {
        let profiling = self.profiling.as_ref()?;
        let mut encoder = self.encoder();
        for op in ops.clone() {
            let mut pass = encoder.begin_compute_pass(&profiling.pass(op));
            self.launch(&mut pass, shape, op..op + 1);
        }
        profiling.resolve(&mut encoder);
        Some(encoder.finish())
    }

    /// Hands over what is written down, and with it the choices that the step's words ask for. Returns the shape of what was
    /// handed over.
    pub(super) fn hand_over(&self, choices: Choices) -> Result<Option<Shape>, BackendError> {
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        let mut commands: Vec<wgpu::CommandBuffer> = Vec::new();
        commands.extend(pending.before.map(wgpu::CommandEncoder::finish));
        let mut handed = None;
        if pending.ops.is_some() || !choices.are_none() {
            let begin = Instant::now();
            let shape = self.shape(pending.ops.as_ref(), choices)?;
            self.step.upload(&self.gpu);
            let foreseen = self.foreseen.borrow_mut().take().filter(|foreseen| foreseen.shape == shape);
            let timed = pending.ops.as_ref().and_then(|ops| self.encode_timed(&shape, ops));
            let is_timed = timed.is_some();
            commands.push(match (timed, foreseen) {
                (Some(timed), _) => timed,
                (None, Some(foreseen)) => foreseen.commands,
                (None, None) => self.encode(&shape),
            });
            self.note(|work| {
                work.encoding += begin.elapsed();
                let launched = shape.groups.iter().filter(|groups| groups[0] > 0).count() as u64;
                work.dispatches += launched;
                let passes =
                    if is_timed { pending.ops.as_ref().map_or(0, |ops| ops.len() as u64) } else { 1 };
                work.passes += if launched > 0 { passes } else { 0 };
            });
            handed = Some(shape);
        }
        commands.extend(pending.after.map(wgpu::CommandEncoder::finish));
        if !commands.is_empty() {
            self.submit(commands)?;
        }
        Ok(handed)
    }

    fn submit(&self, commands: Vec<wgpu::CommandBuffer>) -> Result<(), BackendError> {
        let begin = Instant::now();
        let submitted = self.gpu.queue.submit(commands);
        self.note(|work| {
            work.submissions += 1;
            work.submitting += begin.elapsed();
        });
        let mut in_flight = self.in_flight.borrow_mut();
        in_flight.push_back(submitted);
        if in_flight.len() > IN_FLIGHT
            && let Some(first) = in_flight.pop_front()
        {
            let begin = Instant::now();
            self.gpu.wait_for(first)?;
            self.note(|work| work.waiting += begin.elapsed());
        }
        Ok(())
    }

    /// Encodes a step of a shape that is likely to come next; for when the device is at work.
    pub(super) fn foresee(&self, shape: Shape) {
        let begin = Instant::now();
        let commands = self.encode(&shape);
        *self.foreseen.borrow_mut() = Some(Foreseen { shape, commands });
        self.note(|work| work.foreseeing += begin.elapsed());
    }

    /// Words that come back from a buffer that work already handed over writes.
    pub(super) fn take(&self, staging: &wgpu::Buffer, bytes: u64) -> Result<Vec<u32>, BackendError> {
        let begin = Instant::now();
        let mut words = Vec::with_capacity(bytes as usize / 4);
        let taken = memory::take(&self.gpu, staging, bytes, &mut words);
        self.in_flight.borrow_mut().clear();
        self.note(|work| {
            work.waits += 1;
            work.read_bytes += bytes;
            work.waiting += begin.elapsed();
        });
        taken.map(|()| words)
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut crate::profile::DeviceWork)) {
        let mut work = self.work.get();
        change(&mut work);
        self.work.set(work);
    }
}
