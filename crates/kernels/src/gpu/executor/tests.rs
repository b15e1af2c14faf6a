//! What a step hands to the device, counted.

use super::gpu_at_hand;
use crate::backend::{Backend, Executor, KvType, Limits};
use crate::batch::Batch;
use crate::conformance::programs::{self, Kind};
use crate::gpu::device::Traits;
use crate::gpu::record::record;
use crate::profile::DeviceWork;
use crate::sampling::{SampleRow, Sampled, Sampling};

const LIMITS: Limits = Limits { rows: 16, logit_rows: 4, blocks: 64, slots: 4, kv_type: KvType::F16 };

/// Kernels that choose the likeliest tokens.
const CHOOSING: u64 = 2;

/// A step of these tokens for each of some sequences that are at a position, with logits of their last ones.
fn batch(sequences: u32, position: u32, tokens: &[u32]) -> Batch {
    let mut batch = Batch::default();
    for i in 0..sequences {
        let blocks: Vec<u32> = (i * 8..i * 8 + 8).collect();
        let first = batch.push_span(tokens, position, &blocks, i);
        batch.want_logits(first + tokens.len() as u32 - 1);
    }
    batch
}

fn step(
    executor: &mut dyn Executor,
    batch: &Batch,
    sampling: &Sampling,
    asked: usize,
) -> (Vec<Sampled>, DeviceWork) {
    let before = executor.device_work();
    let mut sampled = Vec::new();
    executor.run(batch).expect("the batch is fine");
    let row = |logits| SampleRow {
        logits,
        sampling,
        prompt: &[],
        output: &[],
        position: 1,
        logprobs: None,
        given: None,
    };
    let rows: Vec<SampleRow> = (0..asked).map(row).collect();
    executor.sample(&rows, &mut sampled).expect("the rows are fine");
    let work = executor.device_work() - before;
    (sampled, work)
}

#[test]
fn a_step_is_one_submission_of_one_pass_and_only_tokens_come_back() {
    let Some(gpu) = gpu_at_hand::gpu() else { return };
    let greedy = Sampling::default();
    for kind in [Kind::Dense, Kind::Experts, Kind::Recurrent] {
        let program = programs::draw(kind, 4);
        let traits = Traits { max_binding: 128 << 20, ..gpu.gpu.traits };
        let recorded = record(&program, &LIMITS, &traits).expect("everything fits");
        let launched = |rows: usize| {
            let of_op = |op| recorded.dispatches_of(program.ops().len(), op, rows);
            (0..program.ops().len()).map(of_op).sum::<usize>() as u64 + CHOOSING
        };
        let mut executor = gpu.compile(&program, &LIMITS).expect("it fits");
        for (position, sequences) in [(0, 2), (1, 2), (2, 2), (3, 4), (4, 2)] {
            // What is copied goes with the step.
            executor.copy_block(40, 41);
            executor.copy_slot(3, 3);
            let tokens = batch(sequences, position, &[3]);
            let (sampled, work) = step(executor.as_mut(), &tokens, &greedy, sequences as usize);
            assert!(sampled.iter().all(|sampled| sampled.token.is_some()));
            let want = DeviceWork {
                submissions: 1,
                passes: 1,
                dispatches: launched(sequences as usize),
                waits: 1,
                read_bytes: 4 * u64::from(sequences),
                // What it takes is another matter.
                ..work
            };
            assert_eq!(work, want, "{kind:?}, position {position}");
        }
        // Of a part of a prompt nothing is waited for.
        let mut prompt = Batch::default();
        prompt.push_span(&[1, 2, 3], 0, &[0], 0);
        let (_, work) = step(executor.as_mut(), &prompt, &greedy, 0);
        assert_eq!((work.submissions, work.passes, work.waits, work.read_bytes), (1, 1, 0, 0));
        assert!(work.dispatches < launched(3) - CHOOSING, "there are no logits");
    }
}

/// What was encoded for one step serves the next one of its shape, and no other.
#[test]
fn steps_that_were_foreseen_are_those_that_were_not() {
    let Some(gpu) = gpu_at_hand::gpu() else { return };
    let program = programs::draw(Kind::Dense, 2);
    let shapes =
        [(2, 0, 2), (2, 1, 2), (1, 2, 1), (1, 3, 1), (3, 4, 3), (3, 5, 2), (3, 6, 0), (3, 7, 0), (3, 8, 3)];
    let run = |forgets: bool| -> Vec<Vec<Sampled>> {
        let mut executor = gpu.executor(&program, &LIMITS).expect("it fits");
        let step = |(sequences, position, asked): (u32, u32, usize)| {
            if forgets {
                executor.foreseen.take();
            }
            let tokens = [position % 29, 5];
            let batch = batch(sequences, 2 * position, &tokens);
            step(&mut executor, &batch, &Sampling::default(), asked).0
        };
        shapes.map(step).to_vec()
    };
    assert_eq!(run(false), run(true));
}

/// A step that nobody asked anything of is handed over as it was, whatever comes next.
#[test]
fn a_step_keeps_its_batch_until_it_is_handed_over() {
    let Some(gpu) = gpu_at_hand::gpu() else { return };
    let program = programs::draw(Kind::Dense, 2);
    let run = |asks: bool| {
        let mut executor = gpu.executor(&program, &LIMITS).expect("it fits");
        let prompt = batch(2, 0, &[4, 9, 2]);
        if asks {
            step(&mut executor, &prompt, &Sampling::default(), 2);
        } else {
            executor.run(&prompt).expect("the batch is fine");
        }
        executor.copy_block(0, 16);
        let mut next = Batch::default();
        let first = next.push_span(&[5], 3, &[16], 0);
        next.want_logits(first);
        executor.run(&next).expect("the batch is fine");
        executor.logits().to_vec()
    };
    assert_eq!(run(true), run(false));
}

/// Block tables that share their blocks may be longer together than there are blocks; then the step's words move.
#[test]
fn words_that_have_no_room_get_it() {
    let Some(gpu) = gpu_at_hand::gpu() else { return };
    let program = programs::draw(Kind::Dense, 2);
    let mut executor = gpu.executor(&program, &LIMITS).expect("it fits");
    let before = executor.memory();
    assert_eq!(before, gpu.memory(&program, &LIMITS));
    let (want, _) = step(&mut executor, &batch(1, 0, &[7]), &Sampling::default(), 1);
    let mut long = Batch::default();
    let table: Vec<u32> = (0..5000).map(|i| if i == 0 { 0 } else { 1 + i % 63 }).collect();
    long.push_span(&[7], 0, &table, 0);
    long.want_logits(0);
    let (have, work) = step(&mut executor, &long, &Sampling::default(), 1);
    assert_eq!((have, work.submissions), (want, 1));
    assert!(executor.memory().scratch > before.scratch, "what grew is told");
}

/// Of a vocabulary as large as they come, as likely as a model finds them, what is usually asked for needs no row of logits.
#[test]
fn usual_choices_need_no_logits_on_the_host() {
    let Some(gpu) = gpu_at_hand::gpu() else { return };
    const VOCAB: usize = 128_256;
    let mut builder = crate::ProgramBuilder::new();
    let logits = builder.logits_buffer(VOCAB);
    let program = builder.finish(logits, VOCAB);
    let mut executor = gpu.executor(&program, &LIMITS).expect("it fits");
    let mut numbers = crate::conformance::data::Numbers::new(9);
    let mut normal = || (0..12).map(|_| numbers.below(1 << 16) as f32 / 65_536.0 - 0.5).sum::<f32>();
    let row: Vec<f32> = (0..VOCAB).map(|_| 2.5 * normal()).collect();
    let mut shown = Batch::default();
    shown.push_span(&[0], 0, &[], 0);
    shown.want_logits(0);
    executor.run(&shown).expect("the batch is fine");
    executor.write(crate::Place::Buffer(program.logits()), &row);
    let warm = Sampling { temperature: 0.8, ..Sampling::default() };
    let wishes = [
        (warm.clone(), None, None, 1),
        (Sampling { top_k: 40, top_p: 0.95, min_p: 0.05, ..warm.clone() }, None, None, 1),
        (Sampling { top_k: 200, ..warm.clone() }, None, None, 1),
        (Sampling { temperature: 0.5, top_p: 0.9, ..warm.clone() }, None, None, 1),
        (Sampling { min_p: 0.05, ..warm.clone() }, None, None, 1),
        (Sampling::default(), Some(20), None, 1),
        (warm.clone(), Some(5), None, 2),
        (warm, Some(5), Some(7), 1),
    ];
    for (sampling, logprobs, given, weighed) in &wishes {
        let sample = SampleRow {
            logits: 0,
            sampling,
            prompt: &[],
            output: &[],
            position: 3,
            logprobs: *logprobs,
            given: *given,
        };
        let before = executor.device_work();
        let mut sampled = Vec::new();
        executor.sample(&[sample], &mut sampled).expect("the row is fine");
        let work = executor.device_work() - before;
        let record = 4 * crate::sampling::gpu::RECORD as u64;
        assert_eq!((work.submissions, work.waits, work.read_bytes), (1, 1, weighed * record), "{sampling:?}");
        assert_eq!(sampled[0].token, crate::sampling::reference::sample(&row, &sample).token, "{sampling:?}");
    }
}

/// The weight of a row is the same number wherever it is made.
#[test]
fn rows_weigh_what_they_weigh_elsewhere() {
    let Some(gpu) = gpu_at_hand::gpu() else { return };
    const VOCAB: usize = 6000;
    let mut builder = crate::ProgramBuilder::new();
    let logits = builder.logits_buffer(VOCAB);
    let program = builder.finish(logits, VOCAB);
    let mut executor = gpu.executor(&program, &LIMITS).expect("it fits");
    let mut numbers = crate::conformance::data::Numbers::new(5);
    for spread in [1e-3, 1.0, 20.0, 1e3, 1e30, 3e38] {
        let row: Vec<f32> = (0..VOCAB)
            .map(|i| match i % 977 {
                0 => f32::NEG_INFINITY,
                1 => f32::from_bits(i as u32),
                2 => -0.0,
                _ => (numbers.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0) * spread,
            })
            .collect();
        let mut shown = Batch::default();
        shown.push_span(&[0], 0, &[], 0);
        shown.want_logits(0);
        executor.run(&shown).expect("the batch is fine");
        executor.write(crate::Place::Buffer(program.logits()), &row);
        for temperature in [1e-45, 0.2, 0.7, 1.0, 1.3, 55.0, 1e6, f32::MAX] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let row_of = |position| SampleRow {
                logits: 0,
                sampling: &sampling,
                prompt: &[],
                output: &[],
                position,
                logprobs: None,
                given: None,
            };
            executor.asked.gather(&[row_of(1)], VOCAB, VOCAB, &LIMITS);
            let words = executor.choose().expect("the rows are fine");
            let have = u64::from(words[4]) | u64::from(words[5]) << 32;
            let want = crate::sampling::gpu::tests::weight(&row, temperature);
            assert_eq!(have, want, "{spread} at {temperature}");
        }
    }
}
