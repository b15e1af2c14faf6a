//! What the device's own clock tells of a step.

use std::ops::Range;

use super::device::Gpu;
use super::memory;
use crate::backend::BackendError;
use crate::profile::OpTime;

/// Times of ops by the device's own clock: a pass for each op, so a little slower than without.
pub(super) struct Profiling {
    pub times: Vec<OpTime>,
    ops: Range<usize>,
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
}

impl Profiling {
    pub fn new(gpu: &Gpu, ops: usize) -> Profiling {
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

    pub fn begin(&mut self, ops: Range<usize>) {
        self.times.fill(OpTime::default());
        self.ops = ops;
    }

    pub fn pass(&self, op: usize) -> wgpu::ComputePassDescriptor<'_> {
        let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(2 * op as u32),
            end_of_pass_write_index: Some(2 * op as u32 + 1),
        });
        wgpu::ComputePassDescriptor { label: None, timestamp_writes }
    }

    pub fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        let range = 2 * self.ops.start as u32..2 * self.ops.end as u32;
        let bytes = 8 * u64::from(range.end - range.start);
        encoder.resolve_query_set(&self.queries, range, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, bytes);
    }

    pub fn read(&mut self, gpu: &Gpu) -> Result<(), BackendError> {
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
