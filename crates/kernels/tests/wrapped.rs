//! A wrapper hands every call on but those that it takes itself.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use exotherm_kernels::conformance::programs::{self, Kind};
use exotherm_kernels::profile::OpTime;
use exotherm_kernels::reference::{ReferenceBackend, ReferenceWith};
use exotherm_kernels::{
    Activations, Backend, BackendError, Batch, Executor, KvType, Limits, MemoryUse, Place, Program,
    SampleRow, Sampled, Wrapped, Wrapper,
};

type Calls = Arc<Mutex<Vec<&'static str>>>;

/// Notes what it is asked.
struct Noting {
    calls: Calls,
    times: [OpTime; 1],
}

impl Noting {
    fn note(&self, call: &'static str) {
        self.calls.lock().unwrap().push(call);
    }
}

impl Executor for Noting {
    fn run_ops(&mut self, _: &Batch, _: Range<usize>) -> Result<(), BackendError> {
        self.note("run_ops");
        Ok(())
    }

    fn run(&mut self, _: &Batch) -> Result<(), BackendError> {
        self.note("run");
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        self.note("logits");
        &[1.0]
    }

    fn logits_of(&self, _: usize) -> Result<&[f32], BackendError> {
        self.note("logits_of");
        Ok(&[2.0])
    }

    fn sample(&mut self, _: &[SampleRow], out: &mut Vec<Sampled>) -> Result<(), BackendError> {
        self.note("sample");
        out.push(Sampled::default());
        Ok(())
    }

    fn memory(&self) -> MemoryUse {
        self.note("memory");
        MemoryUse { kv: 3, ..MemoryUse::default() }
    }

    fn copy_block(&mut self, _: u32, _: u32) {
        self.note("copy_block");
    }

    fn copy_slot(&mut self, _: u32, _: u32) {
        self.note("copy_slot");
    }

    fn set_profiling(&mut self, _: bool) {
        self.note("set_profiling");
    }

    fn op_times(&self) -> &[OpTime] {
        self.note("op_times");
        &self.times
    }

    fn read(&self, _: Place) -> Vec<f32> {
        self.note("read");
        vec![4.0]
    }

    fn write(&mut self, _: Place, _: &[f32]) {
        self.note("write");
    }
}

/// Takes nothing but copies of slots.
struct Plain {
    inner: Box<dyn Executor>,
    copied: bool,
}

impl Wrapper for Plain {
    fn inner(&self) -> &dyn Executor {
        self.inner.as_ref()
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        self.inner.as_mut()
    }

    fn copy_slot(&mut self, _: u32, _: u32) {
        self.copied = true;
    }
}

#[test]
fn every_call_is_handed_on() {
    let calls = Calls::default();
    let noting = Noting { calls: calls.clone(), times: [OpTime::default()] };
    let mut wrapper = Plain { inner: Box::new(noting), copied: false };
    let place = Place::Buffer(programs::draw(Kind::Dense, 1).logits());
    let (batch, mut out) = (Batch::default(), Vec::new());
    let executor: &mut dyn Executor = &mut wrapper;
    executor.run_ops(&batch, 0..0).unwrap();
    executor.run(&batch).unwrap();
    assert_eq!((executor.logits(), executor.logits_of(0).unwrap()), (&[1.0][..], &[2.0][..]));
    executor.sample(&[], &mut out).unwrap();
    assert_eq!((out.len(), executor.memory().kv), (1, 3));
    executor.copy_block(0, 1);
    executor.copy_slot(0, 1);
    executor.set_profiling(true);
    assert_eq!((executor.op_times().len(), executor.read(place)), (1, vec![4.0]));
    executor.write(place, &[]);
    assert!(wrapper.copied);
    let expected = [
        "run_ops",
        "run",
        "logits",
        "logits_of",
        "sample",
        "memory",
        "copy_block",
        "set_profiling",
        "op_times",
        "read",
        "write",
    ];
    assert_eq!(*calls.lock().unwrap(), expected);
}

#[test]
fn a_wrapped_backend_is_what_is_in_it() {
    let program = programs::draw(Kind::Dense, 1);
    let limits = Limits { rows: 2, logit_rows: 1, blocks: 3, slots: 1, kv_type: KvType::F16 };
    let compile = |backend: &dyn Backend, program: &Program| {
        let executor = backend.compile(program, &limits).expect("it is small");
        assert_eq!(executor.memory(), backend.memory(program, &limits));
        (backend.name(), backend.activations(), executor.memory())
    };
    for (wrapped, plain) in [
        (Box::new(ReferenceBackend) as Box<dyn Backend>, Box::new(ReferenceBackend) as Box<dyn Backend>),
        (Box::new(ReferenceWith(Activations::Rounded)), Box::new(ReferenceWith(Activations::Rounded))),
    ] {
        let wrapped = Wrapped::new(wrapped, |inner, _| Plain { inner, copied: false });
        assert_eq!(compile(&wrapped, &program), compile(&*plain, &program));
    }
}
