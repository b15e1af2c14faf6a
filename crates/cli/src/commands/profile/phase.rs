//! One phase: steps of an engine whose ops are timed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use exotherm_engine::{Engine, Request};
use exotherm_kernels::Batch;
use exotherm_kernels::profile::DeviceWork;

use crate::{Context, model};

/// What a phase took.
pub struct Phase {
    pub name: &'static str,
    /// Read or written.
    pub tokens: usize,
    /// Wall time from the first request to the end of the last, without what keeping the batches took.
    pub nanos: u64,
    /// Of each op of the program, in all steps.
    pub op_nanos: Vec<u64>,
    /// The steps' batches, of which the work is counted afterwards.
    pub batches: Vec<Batch>,
    /// What was handed to a device of its own, if one computes.
    pub device: DeviceWork,
    /// What keeping them took: the profile's own time, and in no part of it.
    pub keeping: Duration,
}

impl Phase {
    /// What no op took.
    pub fn other_nanos(&self) -> i128 {
        i128::from(self.nanos) - self.op_nanos.iter().map(|&n| i128::from(n)).sum::<i128>()
    }
}

/// Runs the phases of a profile, as often as it is asked to.
pub struct Runner<'a> {
    pub engine: &'a mut Engine,
    pub cx: &'a Context,
    pub vocab: usize,
    pub prompt: usize,
    pub generate: usize,
    pub batch: usize,
}

impl Runner<'_> {
    /// The prompts first, all of them to their ends, then the answers: no step is of both phases.
    pub fn run(&mut self) -> Result<Vec<Phase>> {
        let context = model::whole_blocks(self.prompt);
        let ids = model::spread_ids(self.vocab, context + self.batch);
        // The sequences read different tokens.
        let requests = |tokens: usize, max_tokens: usize| -> Vec<Request> {
            (0..self.batch).map(|i| Request::new(ids[i..i + tokens].to_vec(), max_tokens)).collect()
        };
        self.engine.forget_prefixes();
        let mut phases = Vec::new();
        if self.prompt > 0 {
            let tokens = self.prompt * self.batch;
            phases.push(phase("prompt", tokens, self.cx, self.engine, requests(self.prompt, 1))?);
        }
        if self.generate > 0 {
            // The engine remembers the prompts' whole blocks; the answers begin with one more token.
            if context > self.prompt {
                phase("context", 0, self.cx, self.engine, requests(context, 1))?;
            }
            let (tokens, requests) = (self.generate * self.batch, requests(context + 1, self.generate));
            phases.push(phase("decode", tokens, self.cx, self.engine, requests)?);
        }
        Ok(phases)
    }
}

/// Runs requests until all have ended.
fn phase(
    name: &'static str,
    tokens: usize,
    cx: &Context,
    engine: &mut Engine,
    requests: Vec<Request>,
) -> Result<Phase> {
    let (op_nanos, batches, keeping) = (Vec::new(), Vec::new(), Duration::ZERO);
    let before = engine.executor().device_work();
    let device = DeviceWork::default();
    let mut phase = Phase { name, tokens, nanos: 0, op_nanos, batches, device, keeping };
    let begin = Instant::now();
    let running = requests.len();
    for request in requests {
        engine.submit(request)?;
    }
    let Phase { op_nanos, batches, keeping, .. } = &mut phase;
    model::finish(cx, engine, running, op_nanos, |engine| {
        let begin = Instant::now();
        batches.push(engine.batch().clone());
        *keeping += begin.elapsed();
    })?;
    phase.device = engine.executor().device_work() - before;
    phase.nanos = (begin.elapsed() - phase.keeping).as_nanos() as u64;
    ensure!(!phase.op_nanos.is_empty(), "this backend cannot tell what its ops take");
    Ok(phase)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use exotherm_engine::EngineConfig;
    use exotherm_kernels::cpu::CpuBackend;
    use exotherm_kernels::ops::{Embed, Head, LinearResidual};
    use exotherm_kernels::reference::ReferenceBackend;
    use exotherm_kernels::{Backend, KvType, Norm, NormKind, Program, ProgramBuilder};
    use exotherm_models::{LoadOptions, load};
    use exotherm_tensor::Tensor;

    use super::*;

    fn program(case: &str) -> Program {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden").join(case);
        let mut checkpoint = model::open_path(&golden).expect("a golden model");
        load(&mut checkpoint, &LoadOptions::default()).expect("it loads").program
    }

    /// The parts are clocked inside of the run, step by step; the wall clock stands outside of all, and only what the profile
    /// keeps for itself is taken out of it.
    fn check(case: &str, backend: &dyn Backend) {
        let cx = Context { started: Instant::now(), interrupt: crate::interrupt::Interrupt::idle() };
        let program = program(case);
        let config = model::measured_config(66, 2, KvType::F16);
        let mut engine = Engine::new(&program, backend, config).expect("an engine");
        engine.executor().set_profiling(true);
        let vocab = program.vocab();
        let mut runner = Runner { engine: &mut engine, cx: &cx, vocab, prompt: 48, generate: 16, batch: 2 };
        // A machine that is busy elsewhere may stop the process between two looks at a clock, but not every time.
        let mut nearest = f64::INFINITY;
        for _ in 0..40 {
            let begin = Instant::now();
            let phases = runner.run().expect("it runs");
            let wall = begin.elapsed().as_nanos() as f64;
            let mut total = 0.0;
            for phase in &phases {
                assert!(phase.keeping > Duration::ZERO, "{case}: batches are kept in no time");
                let ops: u64 = phase.op_nanos.iter().sum();
                let other = phase.other_nanos();
                assert!(other >= 0, "{case}: ops took longer than the phase: {ops} {}", phase.nanos);
                assert_eq!(i128::from(ops) + other, i128::from(phase.nanos));
                assert!(phase.op_nanos.iter().all(|&nanos| nanos > 0), "{case}: {:?}", phase.op_nanos);
                total += phase.nanos as f64 + phase.keeping.as_nanos() as f64;
            }
            assert_eq!(phases.iter().map(|p| p.tokens).collect::<Vec<_>>(), [96, 32]);
            assert_eq!(phases[1].batches.len(), 16);
            assert!(phases[1].batches.iter().all(|batch| batch.rows() == 2));
            nearest = nearest.min((wall - total).abs() / wall);
        }
        assert!(nearest < 0.01, "{case}: parts and other are {:.2} % off the wall", 100.0 * nearest);
    }

    #[test]
    fn parts_and_other_sum_to_the_wall_clock() {
        check("qwen3", &CpuBackend::new(2));
        check("rwkv7/model.gguf", &CpuBackend::new(2));
        check("qwen3moe", &CpuBackend::new(1));
        check("llama-rope3", &ReferenceBackend);
    }

    /// What of the first phase is no op's, at least: in the best of some runs.
    fn least_other(program: &Program, backend: &dyn Backend, prompt: usize) -> f64 {
        let cx = Context { started: Instant::now(), interrupt: crate::interrupt::Interrupt::idle() };
        let mut engine = Engine::new(program, backend, EngineConfig::new(prompt + 11)).expect("an engine");
        engine.executor().set_profiling(true);
        let vocab = program.vocab();
        let mut runner = Runner { engine: &mut engine, cx: &cx, vocab, prompt, generate: 4, batch: 1 };
        let share = |phase: &Phase| phase.other_nanos() as f64 / phase.nanos as f64;
        (0..10).map(|_| share(&runner.run().expect("it runs")[0])).fold(1.0, f64::min)
    }

    /// Nearly all of the time is the ops' own where they do some work: the clocks stand in the right places.
    #[test]
    fn ops_take_most_of_the_time() {
        let least = least_other(&program("qwen3"), &ReferenceBackend, 90);
        assert!(least < 0.2, "{:.0} % of the prompt is other", 100.0 * least);
    }

    /// The cpu backend has clocks of its own, on threads of its own. It is so fast that a golden model leaves most of the
    /// time to the engine; products of a common width do not.
    #[test]
    fn ops_take_most_of_the_time_on_the_cpu() {
        let program = wide(1024, 4);
        for threads in [1, 2] {
            let least = least_other(&program, &CpuBackend::new(threads), 256);
            assert!(least < 0.1, "{threads} threads: {:.1} % of the prompt is other", 100.0 * least);
        }
    }

    /// An embedding, so many square products, and a head.
    fn wide(width: usize, products: usize) -> Program {
        const VOCAB: usize = 64;
        let mut builder = ProgramBuilder::new();
        let (x, residual) = (builder.buffer("x", width), builder.buffer("residual", width));
        let logits = builder.logits_buffer(VOCAB);
        let tensor = |rows: usize| {
            let values: Vec<f32> = (0..rows * width).map(|i| (i % 13) as f32 / 13.0 - 0.5).collect();
            Tensor::from_f32(&[rows, width], &values).expect("a shape")
        };
        let table = builder.matrix("table", vec![tensor(VOCAB)]);
        builder.push(Embed { table, scale: 1.0, positions: None, norm: None, out: x });
        let square = tensor(width);
        for _ in 0..products {
            let weight = builder.matrix("square", vec![square.clone()]);
            builder.push(LinearResidual { x, weight, bias: None, post_norm: None, residual });
        }
        let weight = builder.vector(vec![1.0; width]);
        let norm = Norm { kind: NormKind::Rms, weight, bias: None, eps: 1e-5 };
        builder.push(Head { x: residual, norm, weight: table, soft_cap: None, logits });
        builder.finish(logits, VOCAB)
    }
}
