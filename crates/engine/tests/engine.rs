//! What requests are told: limits, stop tokens, ends, who comes first, and what is left when things go wrong.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{
    Heard, VOCAB, alone, config, engine, engine_on, greedy, programs, setups, transformer,
    transformer_with_head, transformer_without,
};
use exotherm_engine::{Engine, EngineConfig, EngineError, Event, FinishReason, Request, RequestId, Sampling};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{BackendError, Batch, Executor, ProgramBuilder, Wrapped, Wrapper};

const CTX: usize = 64;

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let mut engine = engine(&transformer(), 16, 1, 8);
    let refused = |engine: &mut Engine, request: Request| {
        engine.submit(request).expect_err("it must be refused").to_string()
    };
    assert_eq!(refused(&mut engine, greedy(&[], 1)), "the prompt is empty");
    let too_long = refused(&mut engine, greedy(&[1; 10], 7));
    for number in ["10", "7", "17", "16"] {
        assert!(too_long.contains(number), "{too_long}");
    }
    assert!(refused(&mut engine, greedy(&[1], usize::MAX)).contains("context"));
    assert!(refused(&mut engine, greedy(&[VOCAB as u32], 1)).contains("token 23 is outside"));
    let greedy_one = Sampling::default;
    for (name, sampling) in [
        ("temperature", Sampling { temperature: -1.0, ..greedy_one() }),
        ("temperature", Sampling { temperature: f32::NAN, ..greedy_one() }),
        ("top_p", Sampling { top_p: 0.0, ..greedy_one() }),
        ("top_p", Sampling { top_p: 1.5, ..greedy_one() }),
        ("min_p", Sampling { min_p: -0.1, ..greedy_one() }),
        ("repeat_penalty", Sampling { repeat_penalty: 0.0, ..greedy_one() }),
        ("presence_penalty", Sampling { presence_penalty: f32::INFINITY, ..greedy_one() }),
        ("frequency_penalty", Sampling { frequency_penalty: f32::NAN, ..greedy_one() }),
        ("logit_bias is 101", Sampling { logit_bias: vec![(1, 2.0), (3, 101.0)], ..greedy_one() }),
        ("logit_bias is -inf", Sampling { logit_bias: vec![(1, f32::NEG_INFINITY)], ..greedy_one() }),
        ("logit_bias is NaN", Sampling { logit_bias: vec![(1, f32::NAN)], ..greedy_one() }),
        ("logit_bias names token 23", Sampling { logit_bias: vec![(22, -1.0), (23, 1.0)], ..greedy_one() }),
    ] {
        let why = refused(&mut engine, Request { sampling, ..greedy(&[1], 1) });
        assert!(why.starts_with(name), "{name}: {why}");
    }
    assert!(
        refused(&mut engine, Request { logprobs: Some(21), ..greedy(&[1], 1) }).contains("logprobs of 21")
    );
    assert!(engine.is_idle(), "what is refused leaves nothing behind");
    engine.submit(greedy(&[1; 10], 6)).expect("a request that fills the context exactly is fine");
}

#[test]
fn sizes_that_mean_nothing_are_refused_by_name() {
    let program = transformer();
    for (name, bad) in [
        ("ctx", config(0, 1, 1)),
        ("max_seqs", config(1, 0, 1)),
        ("chunk", config(1, 1, 0)),
        ("logit_rows", EngineConfig { logit_rows: 0, ..config(1, 1, 1) }),
        ("blocks", EngineConfig { blocks: Some(0), ..config(1, 1, 1) }),
        ("snapshot_stride", EngineConfig { snapshot_stride: 24, ..config(1, 1, 1) }),
    ] {
        let why =
            Engine::new(&program, &ReferenceBackend, bad).err().expect("it must be refused").to_string();
        assert!(why.starts_with(name), "{why}");
    }
    for huge in [config(usize::MAX, 1, 1), config(1 << 31, 1 << 31, 1), config(1 << 30, 1 << 30, usize::MAX)]
    {
        let refused = Engine::new(&program, &ReferenceBackend, huge).err();
        assert!(matches!(refused, Some(EngineError::Memory { .. })), "{refused:?}");
    }
}

#[test]
fn a_context_past_the_learned_positions_is_refused() {
    use exotherm_kernels::Norm;
    use exotherm_kernels::NormKind::Rms;
    use exotherm_kernels::ops::{Embed, Head};
    use exotherm_tensor::Tensor;
    let mut b = ProgramBuilder::new();
    let zeros = |rows: usize| vec![Tensor::from_f32(&[rows, 4], &vec![0.0; 4 * rows]).expect("it fits")];
    let (table, positions) = (b.matrix("embedding", zeros(5)), b.matrix("positions", zeros(32)));
    b.limit_positions(32);
    let (x, logits) = (b.buffer("x", 4), b.logits_buffer(5));
    let norm = Norm { kind: Rms, weight: b.vector(vec![1.0; 4]), bias: None, eps: 1e-5 };
    b.push(Embed { table, scale: 1.0, positions: Some(positions), norm: None, out: x });
    b.push(Head { x, norm, weight: table, soft_cap: None, logits });
    let program = b.finish(logits, 5);
    let refused = Engine::new(&program, &ReferenceBackend, config(33, 1, 8)).err();
    assert!(matches!(refused, Some(EngineError::Context { ctx: 33, limit: 32 })), "{refused:?}");
    // All logits are equal, so the lowest token wins, up to the last position there is.
    assert_eq!(alone(&program, 32, &greedy(&[1, 2], 30)), vec![0; 30]);
}

#[test]
fn max_tokens_and_stop_tokens_end_a_request() {
    for program in programs() {
        let ten = alone(&program, CTX, &greedy(&[3, 1, 4], 10));
        assert_eq!(ten.len(), 10);
        assert_eq!(alone(&program, CTX, &greedy(&[3, 1, 4], 1)), ten[..1]);

        let stop = ten[4];
        let first = ten.iter().position(|&t| t == stop).expect("it is there");
        let mut engine = engine(&program, CTX, 1, 8);
        let mut heard = Heard::default();
        let request = Request { stop_tokens: vec![stop], ..greedy(&[3, 1, 4], 10) };
        let id = engine.submit(request).expect("the request is fine");
        heard.finish(&mut engine);
        assert_eq!(heard.tokens(id), ten[..first], "the stop token is not told");
        let (reason, stats) = heard.ends[&id];
        assert_eq!(reason, FinishReason::Stop(stop));
        assert_eq!((stats.prompt_tokens, stats.cached_tokens, stats.generated), (3, 0, first));
        assert_eq!(engine.books().used, 0);
    }
}

#[test]
fn cancelling_gives_everything_back() {
    for program in programs() {
        let mut engine = engine(&program, CTX, 2, 4);
        let mut heard = Heard::default();
        let running = engine.submit(greedy(&[1; 20], 20)).expect("there is a place");
        let other = engine.submit(greedy(&[2; 20], 20)).expect("there is a place");
        let waiting = engine.submit(greedy(&[3; 20], 20)).expect("it can wait");
        for _ in 0..12 {
            heard.step(&mut engine);
        }
        assert!(!heard.tokens(running).is_empty());
        for id in [running, other, waiting] {
            engine.cancel(id);
            engine.cancel(id);
        }
        assert_eq!(engine.books().used, 0, "at once, not with the next step");
        assert!(!engine.is_idle(), "the ends are still to be told");
        heard.finish(&mut engine);
        for id in [running, other, waiting] {
            assert_eq!(heard.ends[&id].0, FinishReason::Cancelled);
        }
        assert_eq!(heard.tokens(waiting), []);
    }
}

type OfEach<T> = Vec<(RequestId, T)>;

/// Runs a step; the tokens that it tells, and the failures with what they say.
fn step(engine: &mut Engine) -> (OfEach<u32>, OfEach<String>) {
    let (mut tokens, mut failures) = (Vec::new(), Vec::new());
    for event in engine.step().expect("the step runs") {
        match event {
            Event::Token { id, token, .. } => tokens.push((*id, *token)),
            Event::Finished { id, reason: FinishReason::Failed, fault: Some(fault), .. } => {
                failures.push((*id, fault.to_string()));
            }
            other => assert!(other.fault().is_none(), "{other:?}"),
        }
    }
    (tokens, failures)
}

#[test]
fn logits_that_are_no_numbers_end_their_request_and_say_so() {
    let program = transformer_with_head(f32::NAN);
    for sampling in [Sampling::default(), Sampling { temperature: 1.0, ..Sampling::default() }] {
        let mut engine = engine(&program, CTX, 1, 8);
        let request = Request { sampling, n: 2, ..greedy(&[1, 2, 3], 4) };
        let id = engine.submit(request).expect("the request is fine");
        for choice in [id, id.choice(1)] {
            let (tokens, failures) = step(&mut engine);
            assert_eq!((tokens, failures.len()), (vec![], 1));
            assert_eq!(failures[0].0, choice);
            assert!(failures[0].1.contains("position 3 are not numbers"), "{failures:?}");
        }
        assert!(engine.is_idle() && engine.books().used == 0);
    }
}

#[test]
fn logits_that_are_no_numbers_keep_nobody_else_waiting() {
    let program = transformer_without(5);
    let mut engine = engine(&program, CTX, 4, 8);
    // Only the prompt of one of them has the token.
    let sampling = Sampling { logit_bias: vec![(5, -100.0)], ..Sampling::default() };
    let request = |prompt: &[u32]| Request { sampling: sampling.clone(), ..greedy(prompt, 4) };
    let mut submit = |prompt: &[u32]| engine.submit(request(prompt)).expect("there is a place");
    let (first, bad, last) = (submit(&[1, 2]), submit(&[3, 5]), submit(&[4, 6]));
    let expected =
        [first, last].into_iter().zip([[1, 2], [4, 6]].map(|p| alone(&program, CTX, &request(&p))));
    let expected: Vec<_> = expected.collect();
    for i in 0..4 {
        let (tokens, failures) = step(&mut engine);
        assert_eq!(
            tokens,
            expected.iter().map(|(id, tokens)| (*id, tokens[i])).collect::<Vec<_>>(),
            "step {i}"
        );
        assert_eq!(
            failures.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            if i == 0 { vec![bad] } else { vec![] }
        );
        assert!(failures.iter().all(|(_, why)| why.contains("position 2 are not numbers")), "{failures:?}");
    }
    assert!(engine.is_idle() && engine.books().used == 0);
}

#[test]
fn logprobs_come_with_the_tokens_of_those_who_asked() {
    for (program, backend) in setups() {
        let mut engine = engine_on(&*backend, &program, CTX, 3, 8);
        let sampling =
            Sampling { temperature: 0.7, top_k: 3, logit_bias: vec![(4, 2.0)], ..Sampling::default() };
        let request = |logprobs| Request { logprobs, sampling: sampling.clone(), ..greedy(&[1, 2, 3], 6) };
        let asked = [Some(3), None, Some(0)];
        let ids = asked.map(|logprobs| engine.submit(request(logprobs)).expect("there is a place"));
        let mut told = [const { Vec::new() }; 3];
        while !engine.is_idle() {
            for event in engine.step().expect("the step runs") {
                if let Event::Token { id, token, logprobs, .. } = event {
                    let which = ids.iter().position(|of| of == id).expect("it was submitted");
                    told[which].push((*token, logprobs.clone()));
                }
            }
        }
        let tokens = told.each_ref().map(|told| told.iter().map(|t| t.0).collect::<Vec<u32>>());
        assert!(
            tokens[0].len() == 6 && tokens[0] == tokens[1] && tokens[0] == tokens[2],
            "asking changes nothing"
        );
        for (with, without) in told[0].iter().zip(&told[1]) {
            let logprobs = with.1.as_ref().expect("asked for");
            assert!(without.1.is_none() && logprobs.top.len() == 3 && logprobs.logprob < 0.0);
            assert!(logprobs.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
            let own = logprobs.top.iter().find(|top| top.token == with.0);
            assert!(own.is_none_or(|own| own.logprob == logprobs.logprob), "the model's own, without bias");
        }
        for (none, three) in told[2].iter().zip(&told[0]) {
            let [none, three] = [none, three].map(|told| told.1.as_ref().expect("asked for"));
            assert!(none.top.is_empty() && none.logprob == three.logprob);
        }
    }
}

#[test]
fn a_deadline_ends_a_request_wherever_it_is() {
    let program = transformer();
    let mut engine = engine(&program, CTX, 1, 8);
    let mut heard = Heard::default();
    let soon = Instant::now() + Duration::from_millis(300);
    let late = Request { deadline: Some(soon), ..greedy(&[1], 60) };
    let running = engine.submit(late.clone()).expect("it fits");
    let waiting = engine.submit(late).expect("it can wait");
    let patient = Request { deadline: Some(soon + Duration::from_secs(600)), ..greedy(&[2], 5) };
    let patient = engine.submit(patient).expect("it can wait");
    heard.step(&mut engine);
    while Instant::now() < soon {
        std::thread::yield_now();
    }
    heard.finish(&mut engine);
    assert_eq!(heard.ends[&running].0, FinishReason::Deadline);
    assert!(!heard.tokens(running).is_empty(), "what was said before stays said");
    assert_eq!((heard.ends[&waiting].0, heard.tokens(waiting)), (FinishReason::Deadline, vec![]));
    assert_eq!((heard.ends[&patient].0, heard.tokens(patient).len()), (FinishReason::Length, 5));
}

#[test]
fn the_queue_is_bounded_and_what_never_fits_is_refused_with_the_numbers() {
    let program = transformer();
    let config = EngineConfig { queue: 2, blocks: Some(2), ..config(CTX, 1, 8) };
    let mut engine = Engine::new(&program, &ReferenceBackend, config).expect("it is small");
    let refused = engine.submit(greedy(&[1; 30], 4)).expect_err("33 positions are three blocks");
    assert!(matches!(refused, EngineError::TooManyBlocks { prompt: 30, max_tokens: 4, need: 3, blocks: 2 }));
    engine.submit(greedy(&[1; 30], 3)).expect("the last token is never run");
    for n in [0, 4, usize::MAX] {
        let refused = engine.submit(Request { n, ..greedy(&[1], 1) });
        assert!(matches!(refused, Err(EngineError::Choices { most: 3, .. })), "{refused:?}");
    }
    for priority in [101, -101, i32::MIN] {
        let refused = engine.submit(Request { priority, ..greedy(&[1], 1) });
        assert!(matches!(refused, Err(EngineError::Priority { most: 100, .. })), "{refused:?}");
    }
    engine.submit(Request { n: 2, ..greedy(&[1], 1) }).expect("two can wait");
    let refused = engine.submit(greedy(&[1], 1));
    assert!(matches!(refused, Err(EngineError::QueueFull { running: 0, waiting: 3, queue: 2 })));
    let mut heard = Heard::default();
    heard.finish(&mut engine);
    assert_eq!(heard.ends.len(), 3, "what is refused leaves nothing behind");
}

#[test]
fn a_priority_goes_before_those_that_wait() {
    let program = transformer();
    let mut engine = engine(&program, CTX, 1, 8);
    let mut heard = Heard::default();
    let first = engine.submit(greedy(&[1], 5)).expect("it fits");
    heard.step(&mut engine);
    let [usual, low, high] = [0, -1, 1]
        .map(|priority| engine.submit(Request { priority, ..greedy(&[2], 2) }).expect("it can wait"));
    let mut order = Vec::new();
    while !engine.is_idle() {
        heard.step(&mut engine);
        order.extend([first, usual, low, high].into_iter().filter(|id| heard.ends.contains_key(id)));
        order.dedup();
    }
    let mut seen = Vec::new();
    order.retain(|id| {
        !seen.contains(id) && {
            seen.push(*id);
            true
        }
    });
    assert_eq!(order, [first, high, usual, low]);
}

#[test]
fn waiting_outweighs_priority_in_the_end() {
    let program = transformer();
    let mut engine = engine(&program, CTX, 1, 8);
    let mut heard = Heard::default();
    let usual = engine.submit(greedy(&[1], 2)).expect("it can wait");
    let blocker = engine.submit(Request { priority: 1, ..greedy(&[1], 30) }).expect("it can wait");
    // Requests of a higher priority come faster than they can be answered.
    let mut more = 0;
    while !heard.ends.contains_key(&usual) {
        more += 1;
        assert!(more < 100, "it waits for ever");
        let _ = engine.submit(Request { priority: 1, ..greedy(&[2], 10) });
        (0..4).for_each(|_| heard.step(&mut engine));
    }
    assert!(heard.ends.contains_key(&blocker) && more > 10, "priority counts for something");
}

/// Panics in the middle of a run when it is told to.
struct Panicking(Box<dyn Executor>, Arc<AtomicBool>);

impl Wrapper for Panicking {
    fn inner(&self) -> &dyn Executor {
        self.0.as_ref()
    }

    fn inner_mut(&mut self) -> &mut dyn Executor {
        self.0.as_mut()
    }

    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        let panics = self.1.load(Ordering::Relaxed);
        // Half of the program has run then.
        self.0.run_ops(batch, 0..if panics { 5 } else { 0 })?;
        if panics {
            std::panic::resume_unwind(Box::new("a test"));
        }
        self.0.run(batch)
    }
}

#[test]
fn a_panic_in_a_step_ends_its_requests_and_no_others() {
    for program in programs() {
        let panics = Arc::new(AtomicBool::new(false));
        let config = config(CTX, 2, 8);
        let told = panics.clone();
        let backend = Wrapped::new(Box::new(ReferenceBackend), move |e, _| Panicking(e, told.clone()));
        let mut engine = Engine::new(&program, &backend, config).expect("it is small");
        let mut heard = Heard::default();
        let request = greedy(&[3; 20], 10);
        let running = [0, 1].map(|_| engine.submit(request.clone()).expect("it fits"));
        let waiting = engine.submit(request.clone()).expect("it can wait");
        (0..8).for_each(|_| heard.step(&mut engine));
        panics.store(true, Ordering::Relaxed);
        assert!(catch_unwind(AssertUnwindSafe(|| engine.step().map(|_| ()))).is_err());
        panics.store(false, Ordering::Relaxed);
        engine.fail_step("a test");
        assert_eq!(engine.books().used, 0);
        heard.step(&mut engine);
        // No step is under way: nothing is told twice.
        engine.fail_step("a test");
        heard.finish(&mut engine);
        running.iter().for_each(|id| assert_eq!(heard.ends[id].0, FinishReason::Failed));
        assert_eq!(heard.ends[&waiting].0, FinishReason::Length);
        assert_eq!(heard.tokens(waiting), alone(&program, CTX, &request));
    }
}

#[test]
fn prompts_go_on_while_others_decode() {
    let program = transformer();
    let mut engine = engine(&program, CTX, 3, 2);
    let mut heard = Heard::default();
    let decoding = [1, 2].map(|t| engine.submit(greedy(&[t], 40)).expect("there is a place"));
    while decoding.iter().any(|&id| heard.tokens(id).is_empty()) {
        heard.step(&mut engine);
    }
    // The decodes fill the chunk of 2, but the prompt gets a row in every step.
    let prompt = engine.submit(greedy(&[3; 10], 1)).expect("there is a place");
    let before = heard.tokens(decoding[0]).len();
    for _ in 0..10 {
        heard.step(&mut engine);
    }
    assert_eq!(heard.tokens(prompt).len(), 1);
    assert_eq!(heard.tokens(decoding[0]).len(), before + 10, "and every decode goes on in every step");
}
