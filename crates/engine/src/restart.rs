//! What becomes of an engine whose device fails.

use std::ops::Range;

use exotherm_kernels::{BackendError, Batch, Executor, Limits, MemoryUse, Place};

/// Makes an executor of the engine's program anew, on a device that is opened anew; or says why it cannot.
pub type Rebuild = Box<dyn FnMut(&Limits) -> Result<Box<dyn Executor>, String> + Send>;

/// Stands where an executor was whose device failed.
pub(crate) struct Gone;

impl Gone {
    fn error<T>() -> Result<T, BackendError> {
        Err(BackendError::Device("it is not opened again yet".into()))
    }
}

impl Executor for Gone {
    fn run_ops(&mut self, _batch: &Batch, _ops: Range<usize>) -> Result<(), BackendError> {
        Gone::error()
    }

    fn run(&mut self, _batch: &Batch) -> Result<(), BackendError> {
        Gone::error()
    }

    fn logits(&self) -> &[f32] {
        &[]
    }

    fn logits_of(&self, _row: usize) -> Result<&[f32], BackendError> {
        Gone::error()
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse::default()
    }

    fn copy_block(&mut self, _from: u32, _to: u32) {}

    fn copy_slot(&mut self, _from: u32, _to: u32) {}

    fn read(&self, _place: Place) -> Vec<f32> {
        Vec::new()
    }

    fn write(&mut self, _place: Place, _values: &[f32]) {}
}
