//! The GPU backend: the program's ops as WGSL kernels, on Vulkan and Metal through wgpu. All of a step goes to the device as
//! one command buffer with one compute pass, and what comes back is what was asked for.

mod compile;
mod device;
mod executor;
pub(crate) mod in_step;
mod kernel;
pub(crate) mod linear;
mod memory;
mod profiling;
pub(crate) mod record;
pub(crate) mod rows;
mod step;

use crate::backend::{Backend, BackendError, Executor, Limits, MemoryUse};
use crate::program::Program;
use crate::rounding::Activations;

pub use device::{GpuInfo, GpuKind, GpuOptions};
pub use in_step::Tuning;

pub(crate) use kernel::Kernel;
pub(crate) use record::{Count, Recorder, View};

use device::Gpu;
use executor::GpuExecutor;

/// Computes on one GPU. Activations stay as they are unless they are to be rounded where they meet quantized weights.
pub struct GpuBackend {
    gpu: Gpu,
}

impl GpuBackend {
    pub fn open(info: &GpuInfo, options: &GpuOptions) -> Result<GpuBackend, BackendError> {
        Ok(GpuBackend { gpu: info.open(options)? })
    }

    /// On the first GPU of this machine, software ones included, if there is one.
    pub fn first(options: &GpuOptions) -> Result<Option<GpuBackend>, BackendError> {
        GpuInfo::all().first().map(|info| GpuBackend::open(info, options)).transpose()
    }
}

impl Backend for GpuBackend {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn activations(&self) -> Activations {
        if self.gpu.traits.rounded { Activations::Rounded } else { Activations::Exact }
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
        let recording = record::record(program, limits, &self.gpu.traits)?;
        Ok(Box::new(GpuExecutor::new(self.gpu.clone(), recording, program, limits)?))
    }
}

#[cfg(test)]
mod tests;
