//! A backend around another: it does what the other does, but for the calls that it takes itself. For traces, pauses and
//! faults.

use std::ops::Range;

use crate::backend::{Backend, BackendError, Executor, Limits, MemoryUse, Place};
use crate::batch::Batch;
use crate::profile::{DeviceWork, OpTime};
use crate::program::Program;
use crate::rounding::Activations;
use crate::sampling::{SampleRow, Sampled};

/// An executor around another, which gets every call that is not taken here.
pub trait Wrapper: Send {
    fn inner(&self) -> &dyn Executor;

    fn inner_mut(&mut self) -> &mut dyn Executor;

    fn run_ops(&mut self, batch: &Batch, ops: Range<usize>) -> Result<(), BackendError> {
        self.inner_mut().run_ops(batch, ops)
    }

    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.inner_mut().run(batch)
    }

    fn logits(&self) -> &[f32] {
        self.inner().logits()
    }

    fn logits_of(&self, row: usize) -> Result<&[f32], BackendError> {
        self.inner().logits_of(row)
    }

    fn sample(&mut self, rows: &[SampleRow], out: &mut Vec<Sampled>) -> Result<(), BackendError> {
        self.inner_mut().sample(rows, out)
    }

    fn memory(&self) -> MemoryUse {
        self.inner().memory()
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.inner_mut().copy_block(from, to);
    }

    fn copy_slot(&mut self, from: u32, to: u32) {
        self.inner_mut().copy_slot(from, to);
    }

    fn set_profiling(&mut self, on: bool) {
        self.inner_mut().set_profiling(on);
    }

    fn op_times(&self) -> &[OpTime] {
        self.inner().op_times()
    }

    fn device_work(&self) -> DeviceWork {
        self.inner().device_work()
    }

    fn read(&self, place: Place) -> Vec<f32> {
        self.inner().read(place)
    }

    fn fetch(&self, place: Place) -> Result<Vec<f32>, BackendError> {
        self.inner().fetch(place)
    }

    fn write(&mut self, place: Place, values: &[f32]) {
        self.inner_mut().write(place, values);
    }
}

impl<W: Wrapper> Executor for W {
    fn run_ops(&mut self, batch: &Batch, ops: Range<usize>) -> Result<(), BackendError> {
        Wrapper::run_ops(self, batch, ops)
    }

    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        Wrapper::run(self, batch)
    }

    fn logits(&self) -> &[f32] {
        Wrapper::logits(self)
    }

    fn logits_of(&self, row: usize) -> Result<&[f32], BackendError> {
        Wrapper::logits_of(self, row)
    }

    fn sample(&mut self, rows: &[SampleRow], out: &mut Vec<Sampled>) -> Result<(), BackendError> {
        Wrapper::sample(self, rows, out)
    }

    fn memory(&self) -> MemoryUse {
        Wrapper::memory(self)
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        Wrapper::copy_block(self, from, to);
    }

    fn copy_slot(&mut self, from: u32, to: u32) {
        Wrapper::copy_slot(self, from, to);
    }

    fn set_profiling(&mut self, on: bool) {
        Wrapper::set_profiling(self, on);
    }

    fn op_times(&self) -> &[OpTime] {
        Wrapper::op_times(self)
    }

    fn device_work(&self) -> DeviceWork {
        Wrapper::device_work(self)
    }

    fn read(&self, place: Place) -> Vec<f32> {
        Wrapper::read(self, place)
    }

    fn fetch(&self, place: Place) -> Result<Vec<f32>, BackendError> {
        Wrapper::fetch(self, place)
    }

    fn write(&mut self, place: Place, values: &[f32]) {
        Wrapper::write(self, place, values);
    }
}

/// Wraps what a backend compiles.
type Wrap = dyn Fn(Box<dyn Executor>, &Program) -> Box<dyn Executor>;

/// A backend whose executors are wrapped.
pub struct Wrapped {
    backend: Box<dyn Backend>,
    wrap: Box<Wrap>,
}

impl Wrapped {
    pub fn new<W: Wrapper + 'static>(
        backend: Box<dyn Backend>,
        wrap: impl Fn(Box<dyn Executor>, &Program) -> W + 'static,
    ) -> Wrapped {
        Wrapped { backend, wrap: Box::new(move |executor, program| Box::new(wrap(executor, program))) }
    }
}

impl Backend for Wrapped {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn activations(&self) -> Activations {
        self.backend.activations()
    }

    fn is_in_host_memory(&self) -> bool {
        self.backend.is_in_host_memory()
    }

    fn memory(&self, program: &Program, limits: &Limits) -> MemoryUse {
        self.backend.memory(program, limits)
    }

    fn compile(&self, program: &Program, limits: &Limits) -> Result<Box<dyn Executor>, BackendError> {
        Ok((self.wrap)(self.backend.compile(program, limits)?, program))
    }
}
