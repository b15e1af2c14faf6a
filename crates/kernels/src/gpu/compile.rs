//! Kernels compiled and their buffers bound.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock, PoisonError};

use super::device::Gpu;
use super::memory;
use super::record::{Beside, Count, Dispatch, KernelText, Recording, View};
use crate::backend::BackendError;

/// A kernel in its place.
pub(super) struct Launch {
    pub op: usize,
    pub beside: Beside,
    pub pipeline: Arc<Pipeline>,
    pub bindings: wgpu::BindGroup,
    pub counts: [Count; 3],
    pub rows: RangeInclusive<usize>,
}

/// A kernel that is compiled, when it is first run at the latest.
pub(super) struct Pipeline {
    gpu: Gpu,
    kernel: KernelText,
    layouts: [wgpu::BindGroupLayout; 2],
    compiled: OnceLock<wgpu::ComputePipeline>,
}

impl Pipeline {
    pub fn get(&self) -> &wgpu::ComputePipeline {
        self.compiled.get_or_init(|| {
            let known = || self.gpu.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
            let found = known().get(&self.kernel.text).cloned();
            found.unwrap_or_else(|| {
                let made = pipeline(&self.gpu, &self.kernel, self.layouts.each_ref().map(Some));
                known().insert(self.kernel.text.clone(), made.clone());
                made
            })
        })
    }
}

pub(super) fn bindings_layout(gpu: &Gpu, is_written: &[bool]) -> wgpu::BindGroupLayout {
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

pub(super) fn bind<'a>(
    gpu: &Gpu,
    layout: &wgpu::BindGroupLayout,
    resources: impl IntoIterator<Item = wgpu::BindingResource<'a>>,
) -> wgpu::BindGroup {
    let numbered = resources.into_iter().zip(0..);
    let entries: Vec<_> =
        numbered.map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource }).collect();
    gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
}

/// Compiles the kernels and binds their buffers. A processor in place of a GPU takes so long for a kernel that only those are
/// compiled there that are run.
pub(super) fn compile(
    gpu: &Gpu,
    recording: &Recording,
    buffers: &[wgpu::Buffer],
    step_layout: &wgpu::BindGroupLayout,
) -> Result<Vec<Launch>, BackendError> {
    let mut layouts: HashMap<&[bool], wgpu::BindGroupLayout> = HashMap::new();
    for kernel in &recording.kernels {
        layouts.entry(&kernel.is_written).or_insert_with(|| bindings_layout(gpu, &kernel.is_written));
    }
    if !gpu.is_software {
        compile_all(gpu, &recording.kernels, &|kernel| {
            [Some(step_layout), Some(&layouts[kernel.is_written.as_slice()])]
        })?;
    }
    let pipeline = |kernel: &KernelText| {
        let layouts = [step_layout.clone(), layouts[kernel.is_written.as_slice()].clone()];
        Arc::new(Pipeline { gpu: gpu.clone(), kernel: kernel.clone(), layouts, compiled: OnceLock::new() })
    };
    let pipelines: Vec<Arc<Pipeline>> = recording.kernels.iter().map(pipeline).collect();
    let launch = |dispatch: &Dispatch| {
        let resource = |view: &View| {
            let (buffer, size) = (memory::at(buffers, view.buffer), wgpu::BufferSize::new(view.bytes as u64));
            wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: view.offset as u64, size })
        };
        let layout = &layouts[recording.kernels[dispatch.kernel].is_written.as_slice()];
        Launch {
            op: dispatch.op,
            beside: dispatch.beside,
            pipeline: pipelines[dispatch.kernel].clone(),
            bindings: bind(gpu, layout, dispatch.views.iter().map(resource)),
            counts: dispatch.counts,
            rows: dispatch.rows.clone(),
        }
    };
    Ok(recording.dispatches.iter().map(launch).collect())
}

/// Compiles the kernels, by all of the machine's threads; those that were compiled before are not again.
fn compile_all<'a>(
    gpu: &Gpu,
    kernels: &[KernelText],
    layouts: &(dyn Fn(&KernelText) -> [Option<&'a wgpu::BindGroupLayout>; 2] + Sync),
) -> Result<(), BackendError> {
    let known = || gpu.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
    let new: Vec<&KernelText> = kernels.iter().filter(|kernel| !known().contains_key(&kernel.text)).collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let share = new.len().div_ceil(threads).max(1);
    let compiled = |share: &[&KernelText]| -> Vec<(String, wgpu::ComputePipeline)> {
        share.iter().map(|kernel| (kernel.text.clone(), pipeline(gpu, kernel, layouts(kernel)))).collect()
    };
    let made: Vec<(String, wgpu::ComputePipeline)> = std::thread::scope(|scope| {
        let shares: Vec<_> = new.chunks(share).map(|share| scope.spawn(|| compiled(share))).collect();
        shares.into_iter().flat_map(|share| share.join().expect("compiling does not panic")).collect()
    });
    // What failed is not kept.
    gpu.faults.check()?;
    if let Some(cache) = gpu.cache.as_ref().filter(|_| !made.is_empty()) {
        cache.keep();
    }
    known().extend(made);
    Ok(())
}

fn pipeline(
    gpu: &Gpu,
    kernel: &KernelText,
    layouts: [Option<&wgpu::BindGroupLayout>; 2],
) -> wgpu::ComputePipeline {
    let label = Some(kernel.label);
    let source = wgpu::ShaderSource::Wgsl(kernel.text.as_str().into());
    let described = wgpu::ShaderModuleDescriptor { label, source };
    let module = match gpu.is_checked {
        true => gpu.device.create_shader_module(described),
        // SAFETY: all kernels are this crate's own and run with checks in the suite; batches are checked before they run, and
        // no loop of them is endless.
        false => unsafe {
            gpu.device.create_shader_module_trusted(described, wgpu::ShaderRuntimeChecks::unchecked())
        },
    };
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
        // What lanes share is written before it is read.
        compilation_options: wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: false,
            ..wgpu::PipelineCompilationOptions::default()
        },
        cache: gpu.cache.as_ref().map(|kept| &kept.cache),
    })
}
