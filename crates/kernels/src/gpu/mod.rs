//! The GPU backend: the program's ops as WGSL kernels, on Vulkan and Metal through wgpu. All of a step goes to the device as
//! one command buffer with one compute pass, and what comes back is what was asked for.

pub(crate) mod attended;
mod cache;
mod compile;
mod device;
mod executor;
pub(crate) mod experts;
pub(crate) mod grouped;
pub(crate) mod in_step;
mod kernel;
pub(crate) mod linear;
pub(crate) mod many;
mod memory;
mod profiling;
pub(crate) mod record;
pub(crate) mod rows;
mod step;
mod unrolled;

use std::path::Path;
use std::sync::Arc;

use crate::backend::{Backend, BackendError, Executor, KvType, Limits, MemoryUse};
use crate::program::Program;
use crate::rounding::Activations;

pub use device::{GpuInfo, GpuKind, GpuOptions, Products};
pub use in_step::Tuning;

pub(crate) use kernel::Kernel;
pub(crate) use record::{Count, Recorder, View};
pub(crate) use step::ASKED;
pub(crate) use unrolled::unrolled;

use cache::KernelCache;
use device::{Gpu, Traits};
use executor::GpuExecutor;

/// How many dispatches each op takes in a step of one row with a short context, one after another, on a device that has as little
/// as any: their number decides how fast one row is.
pub fn dispatches(program: &Program) -> Result<Vec<usize>, BackendError> {
    let limits = Limits { rows: 1, logit_rows: 1, blocks: 1, slots: 1, kv_type: KvType::F16 };
    let recording = record::record(program, &limits, &Traits::LEAST)?;
    let ops = program.ops().len();
    Ok((0..ops).map(|op| recording.dispatches_of(ops, op, 1)).collect())
}

/// Computes on one GPU. Activations stay as they are unless they are to be rounded where they meet quantized weights. Its clones are of
/// one device.
#[derive(Clone)]
pub struct GpuBackend {
    gpu: Gpu,
    products: Products,
}

/// Is told how many bytes of how many are on the device.
pub type LoadProgress = dyn Fn(usize, usize) + Send + Sync;

impl GpuBackend {
    pub fn open(info: &GpuInfo, options: &GpuOptions) -> Result<GpuBackend, BackendError> {
        Ok(GpuBackend { gpu: info.open(options)?, products: options.products })
    }

    /// Keeps compiled kernels in this folder for the next time, where the interface to the GPU can.
    pub fn with_kernel_cache(mut self, folder: &Path) -> GpuBackend {
        self.gpu.cache = KernelCache::open(&self.gpu.device, &self.gpu.info, folder);
        self
    }

    /// Tells of weights that are brought to the device.
    pub fn with_progress(mut self, progress: Arc<LoadProgress>) -> GpuBackend {
        self.gpu.progress = Some(progress);
        self
    }

    /// On the first GPU of this machine, software ones included, if there is one.
    pub fn first(options: &GpuOptions) -> Result<Option<GpuBackend>, BackendError> {
        GpuInfo::all().first().map(|info| GpuBackend::open(info, options)).transpose()
    }

    /// Whether its kernels for many rows multiply matrices as a whole.
    pub fn multiplies_matrices(&self) -> bool {
        self.gpu.traits.matrices
    }
}

impl GpuBackend {
    fn executor(&self, program: &Program, limits: &Limits) -> Result<GpuExecutor, BackendError> {
        let recording = record::record(program, limits, &self.gpu.traits)?;
        GpuExecutor::new(self.gpu.clone(), recording, program, limits)
    }
}

impl Backend for GpuBackend {
    fn name(&self) -> &'static str {
        "gpu"
    }

    /// Those of the kernels that are asked for; where the number of rows decides, of the ones for few.
    fn activations(&self) -> Activations {
        match self.products {
            Products::Auto | Products::Few if self.gpu.traits.rounded => Activations::Rounded,
            Products::Auto | Products::Few => Activations::Exact,
            Products::Several | Products::Many => Activations::RoundedToF16,
        }
    }

    fn is_in_host_memory(&self) -> bool {
        // Of kinds that are not known the careful thing is said.
        !matches!(self.gpu.info.device_type, wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::VirtualGpu)
    }

    fn memory(&self, program: &Program, limits: &Limits) -> MemoryUse {
        const TOO_MUCH: usize = usize::MAX;
        let recorded = record::record(program, limits, &self.gpu.traits);
        match recorded {
            Ok(recording) => executor::memory(&recording, program, limits),
            Err(_) => MemoryUse { weights: TOO_MUCH, kv: TOO_MUCH, recurrent: TOO_MUCH, scratch: TOO_MUCH },
        }
    }

    fn compile(&self, program: &Program, limits: &Limits) -> Result<Box<dyn Executor>, BackendError> {
        Ok(Box::new(self.executor(program, limits)?))
    }
}

#[cfg(test)]
mod tests;
