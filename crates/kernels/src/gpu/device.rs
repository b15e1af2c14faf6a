//! The GPUs that there are, and one of them opened.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::LoadProgress;
use super::cache::KernelCache;
use super::in_step::{self, Tuning};
use crate::backend::BackendError;

/// Of what the driver says that this process may take, in percent.
const MOST_OF_MEMORY: u8 = 98;

/// What decides which kernels a device gets and how a program is laid out for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Traits {
    /// Bytes that a kernel can see at once.
    pub max_binding: usize,
    /// Fewest and most lanes that run in step, where kernels may exchange values among them.
    pub subgroup: Option<(u32, u32)>,
    /// Whether kernels may compute in halves.
    pub halves: bool,
    /// Whether matrices of 16 by 16 halves are multiplied as a whole, into sums of floats.
    pub matrices: bool,
    /// Whether activations are rounded to integers where they meet quantized weights.
    pub rounded: bool,
    pub tuning: Tuning,
    /// Whether products of many rows are made in tiles as large as such matrices want them.
    pub large_tiles: bool,
    /// Which of them.
    pub tiles: usize,
    /// Bytes that the lanes of a workgroup share.
    pub workgroup_memory: usize,
    /// From how many rows on products take the kernels for several, and from how many those for many.
    pub several_from: usize,
    pub many_from: usize,
}

impl Traits {
    /// How many lanes are sure to run in step, where kernels are to make use of it.
    pub fn in_step(&self) -> Option<usize> {
        in_step::lanes_in_step(self.subgroup)
    }

    /// As little as any device has.
    pub const LEAST: Traits = Traits {
        max_binding: 128 << 20,
        subgroup: None,
        halves: false,
        matrices: false,
        rounded: false,
        tuning: Tuning::SOFTWARE,
        large_tiles: false,
        tiles: 0,
        workgroup_memory: 16 << 10,
        several_from: usize::MAX,
        many_from: usize::MAX,
    };
}

/// From how many rows on a device takes the kernels for several and for many: with matrices that are multiplied as a whole, of
/// other GPUs, and in software, where the results of tests are not to depend on the number of rows.
const WITH_MATRICES: (usize, usize) = (9, 65);
const WITHOUT_MATRICES: (usize, usize) = (32, 32);
const IN_SOFTWARE: (usize, usize) = (usize::MAX, usize::MAX);

/// Which kernels multiply rows with matrices. A row's result is the same bit for bit whatever rows are beside it as long as the
/// kernels are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Products {
    /// By the number of rows, as it is best on the device.
    #[default]
    Auto,
    /// Those for few rows, whatever their number.
    Few,
    /// Those for some tens of rows. They round activations and weights to halves, and so do those for many.
    Several,
    Many,
}

/// How a GPU is used; what it cannot do is not used whatever is said here.
#[derive(Clone, Copy, Debug)]
pub struct GpuOptions {
    /// Whether kernels look after every index, as they do in tests: those that have passed need not.
    pub checked: bool,
    /// Whether activations are rounded to integers where they meet quantized weights; `None` is what suits the device.
    pub rounded: Option<bool>,
    /// Whether kernels may exchange values among lanes that run in step.
    pub subgroups: bool,
    pub halves: bool,
    pub matrices: bool,
    /// How products are shared out; `None` is what suits the device.
    pub tuning: Option<Tuning>,
    pub products: Products,
    /// Which tiles the products of more rows are made in where matrices are multiplied as a whole: 0 are the best that are known,
    /// others are for measurements.
    pub tiles: usize,
}

impl Default for GpuOptions {
    fn default() -> GpuOptions {
        let (subgroups, halves, matrices) = (true, true, true);
        let (products, tiles, tuning) = (Products::Auto, 0, None);
        GpuOptions { checked: false, rounded: None, subgroups, halves, matrices, tuning, products, tiles }
    }
}

/// A GPU of this machine, not opened.
pub struct GpuInfo {
    adapter: wgpu::Adapter,
}

/// What kind of thing computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GpuKind {
    Discrete,
    Integrated,
    Virtual,
    Unknown,
    /// The processor, in place of a GPU.
    Software,
}

impl GpuInfo {
    /// All that there are, real ones first.
    pub fn all() -> Vec<GpuInfo> {
        let mut wanted = wgpu::InstanceDescriptor::new_without_display_handle();
        // What is taken beyond the device's memory would be moved to and fro, at a tenth of the speed or less.
        wanted.memory_budget_thresholds.for_resource_creation = Some(MOST_OF_MEMORY);
        let instance = wgpu::Instance::new(wanted);
        let adapters = ready(instance.enumerate_adapters(wgpu::Backends::all()));
        let mut all: Vec<GpuInfo> = adapters.into_iter().map(|adapter| GpuInfo { adapter }).collect();
        all.sort_by_key(|gpu| gpu.kind() as usize);
        all
    }

    pub fn name(&self) -> String {
        self.adapter.get_info().name
    }

    pub fn kind(&self) -> GpuKind {
        match self.adapter.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => GpuKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => GpuKind::Integrated,
            wgpu::DeviceType::VirtualGpu => GpuKind::Virtual,
            wgpu::DeviceType::Cpu => GpuKind::Software,
            wgpu::DeviceType::Other => GpuKind::Unknown,
        }
    }

    /// The interface that it is reached through, and its driver.
    pub fn driver(&self) -> String {
        let info = self.adapter.get_info();
        let parts = [info.backend.to_string(), info.driver, info.driver_info];
        parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// The largest part of its memory that one kernel can see at once, in bytes.
    pub fn max_binding(&self) -> usize {
        max_binding(&self.adapter.limits())
    }

    /// Fewest and most lanes that run in step.
    pub fn lanes_in_step(&self) -> (u32, u32) {
        let info = self.adapter.get_info();
        (info.subgroup_min_size, info.subgroup_max_size)
    }

    /// What kernels could use and it has not.
    pub fn lacks(&self) -> Vec<&'static str> {
        let features = self.adapter.features();
        let wanted = [
            (wgpu::Features::SHADER_F16, "f16"),
            (wgpu::Features::SUBGROUP, "subgroups"),
            (wgpu::Features::TIMESTAMP_QUERY, "timestamps"),
            (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrices"),
            (wgpu::Features::PIPELINE_CACHE, "a cache of compiled kernels"),
        ];
        wanted.into_iter().filter(|(feature, _)| !features.contains(*feature)).map(|(_, name)| name).collect()
    }

    /// Matrices of 16 by 16 halves with sums of floats, as kernels write them.
    fn has_matrices(&self) -> bool {
        use wgpu::CooperativeScalarType::{F16, F32};
        self.adapter
            .cooperative_matrix_properties()
            .iter()
            .any(|m| (m.m_size, m.n_size, m.k_size) == (16, 16, 16) && (m.ab_type, m.cr_type) == (F16, F32))
    }

    fn traits(&self, options: &GpuOptions, features: wgpu::Features) -> Traits {
        let is_real = self.kind() != GpuKind::Software;
        // Apple's multiply no bytes four at a time.
        let suits = is_real && self.adapter.get_info().backend == wgpu::Backend::Vulkan;
        let limits = self.adapter.limits();
        let subgroup = features.contains(wgpu::Features::SUBGROUP).then(|| self.lanes_in_step());
        let tuning = if is_real { Tuning::GPU } else { Tuning::SOFTWARE };
        let matrices = features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
        let (several_from, many_from) = match options.products {
            Products::Auto if !is_real => IN_SOFTWARE,
            Products::Auto if matrices => WITH_MATRICES,
            Products::Auto => WITHOUT_MATRICES,
            Products::Few => (usize::MAX, usize::MAX),
            Products::Several => (0, usize::MAX),
            Products::Many => (0, 0),
        };
        Traits {
            max_binding: max_binding(&limits),
            subgroup,
            halves: features.contains(wgpu::Features::SHADER_F16),
            matrices,
            // Only kernels whose lanes run in step do so.
            rounded: options.rounded.unwrap_or(suits) && in_step::lanes_in_step(subgroup).is_some(),
            tuning: options.tuning.unwrap_or(tuning),
            large_tiles: matrices,
            tiles: options.tiles,
            workgroup_memory: limits.max_compute_workgroup_storage_size as usize,
            several_from,
            many_from,
        }
    }

    pub(crate) fn open(&self, options: &GpuOptions) -> Result<Gpu, BackendError> {
        let limits = self.adapter.limits();
        let mut wanted = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE;
        wanted.set(wgpu::Features::SUBGROUP, options.subgroups);
        wanted.set(wgpu::Features::SHADER_F16, options.halves);
        // Who has which part of a matrix is known only where all groups of lanes are of one size.
        let (fewest, most) = self.lanes_in_step();
        let has_matrices = fewest == most && self.has_matrices();
        let matrices = options.matrices && options.halves && options.subgroups && has_matrices;
        wanted.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, matrices);
        let features = self.adapter.features() & wanted;
        let wanted = wgpu::DeviceDescriptor {
            label: Some("exotherm"),
            required_features: features,
            required_limits: limits,
            // SAFETY: of what is experimental only products of matrices are used, by kernels of this crate alone.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..wgpu::DeviceDescriptor::default()
        };
        let opened = ready(self.adapter.request_device(&wanted));
        let (device, queue) = opened.map_err(|error| BackendError::Device(error.to_string()))?;
        let faults = Faults::default();
        let uncaptured = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| uncaptured.note(&error)));
        let lost = faults.clone();
        device.set_device_lost_callback(move |reason, why| {
            lost.lose(format!("the GPU is lost ({reason:?}): {why}"))
        });
        let traits = self.traits(options, features);
        let can_time = features.contains(wgpu::Features::TIMESTAMP_QUERY);
        Ok(Gpu {
            device,
            queue,
            info: self.adapter.get_info(),
            traits,
            faults,
            can_time,
            is_checked: options.checked,
            is_software: self.kind() == GpuKind::Software,
            pipelines: Arc::default(),
            cache: None,
            progress: None,
        })
    }
}

fn max_binding(limits: &wgpu::Limits) -> usize {
    let bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
    // Whole vectors.
    usize::try_from(bytes).unwrap_or(usize::MAX) / 16 * 16
}

/// A GPU that is open.
#[derive(Clone)]
pub(crate) struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    pub traits: Traits,
    pub faults: Faults,
    /// Whether it can tell when a pass began and ended.
    pub can_time: bool,
    /// Whether its kernels look after every index.
    pub is_checked: bool,
    /// Whether it is the processor, in place of a GPU.
    pub is_software: bool,
    /// Compiled kernels by their texts: programs of one shape share them.
    pub pipelines: Arc<Mutex<HashMap<String, wgpu::ComputePipeline>>>,
    /// Compiled kernels from one run to the next.
    pub cache: Option<KernelCache>,
    pub progress: Option<Arc<LoadProgress>>,
}

impl Gpu {
    /// Waits until all that was handed over is done.
    pub fn wait(&self) -> Result<(), BackendError> {
        let waited = self.device.poll(wgpu::PollType::wait_indefinitely());
        waited.map_err(|error| BackendError::Device(error.to_string()))?;
        self.faults.check()
    }

    /// Waits until what was handed over so far is done.
    pub fn wait_for(&self, submitted: wgpu::SubmissionIndex) -> Result<(), BackendError> {
        let wanted = wgpu::PollType::Wait { submission_index: Some(submitted), timeout: None };
        self.device.poll(wanted).map_err(|error| BackendError::Device(error.to_string()))?;
        self.faults.check()
    }
}

/// What went wrong on a device and was told to nobody yet; that it is lost is told every time.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<Fault>>);

#[derive(Default)]
struct Fault {
    what: Option<String>,
    is_lost: bool,
    /// Whether the last one was that there is no room.
    is_of_memory: bool,
}

impl Faults {
    /// Only the first is kept: others follow from it.
    fn note(&self, error: &wgpu::Error) {
        let mut fault = self.lock();
        fault.is_of_memory |= matches!(error, wgpu::Error::OutOfMemory { .. });
        fault.what.get_or_insert_with(|| match error {
            wgpu::Error::OutOfMemory { .. } => "its memory is used up".to_string(),
            error => error.to_string(),
        });
    }

    /// Whether there was no room for something since this was last asked.
    pub fn are_of_memory(&self) -> bool {
        std::mem::take(&mut self.lock().is_of_memory)
    }

    fn lose(&self, what: String) {
        *self.lock() = Fault { what: Some(what), is_lost: true, is_of_memory: false };
    }

    pub fn check(&self) -> Result<(), BackendError> {
        let mut fault = self.lock();
        let what = if fault.is_lost { fault.what.clone() } else { fault.what.take() };
        what.map_or(Ok(()), |what| Err(BackendError::Device(what)))
    }

    fn lock(&self) -> MutexGuard<'_, Fault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a future gives that is ready from the start, as all of the device's are outside of browsers.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
        std::thread::yield_now();
    }
}
