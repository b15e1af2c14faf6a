//! How likely a prompt was: what the model itself says of it, told once, whoever else has read the same.

mod common;

use common::{Heard, VOCAB, config, engine_on, greedy, programs, setups, transformer, transformer_without};
use exotherm_engine::{
    Engine, EngineConfig, EngineError, Evaluator, Event, FinishReason, Request, TokenLogprobs,
};
use exotherm_kernels::Program;
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::reference::ReferenceBackend;

const CTX: usize = 64;
const TEXT: &[u32] =
    &[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7, 9, 5, 0, 2];

fn logged(prompt: &[u32], top: u8, max_tokens: usize) -> Request {
    Request { prompt_logprobs: Some(top), ..greedy(prompt, max_tokens) }
}

/// Of each token after the first, with nothing in common with how the engine does it.
fn exact(program: &Program, prompt: &[u32]) -> Vec<f64> {
    let mut evaluator =
        Evaluator::new(program, &ReferenceBackend, &config(CTX, 1, CTX)).expect("it is small");
    let (positions, mut told): (Vec<usize>, Vec<f64>) = ((0..prompt.len() - 1).collect(), Vec::new());
    let take = |position: usize, logits: &[f32]| {
        let own = f64::from(logits[prompt[position + 1] as usize]);
        told.push(-logits.iter().map(|&l| (f64::from(l) - own).exp()).sum::<f64>().ln());
    };
    evaluator.logits(prompt, &positions, take).expect("it fits");
    told
}

#[track_caller]
fn assert_near(told: &[TokenLogprobs], exact: &[f64]) {
    assert_eq!(told.len(), exact.len());
    for (told, exact) in told.iter().zip(exact) {
        assert!((f64::from(told.logprob) - exact).abs() < 1e-4, "{} and {exact}", told.logprob);
    }
}

#[test]
fn a_prompt_is_told_as_the_model_has_it() {
    for program in programs() {
        let exact = exact(&program, TEXT);
        for (chunk, logit_rows) in [(1, 1), (7, 3), (CTX, CTX)] {
            let config = EngineConfig { logit_rows, ..config(CTX, 1, chunk) };
            let mut engine = Engine::new(&program, &ReferenceBackend, config).expect("it is small");
            let mut heard = Heard::default();
            let id = engine.submit(logged(TEXT, 2, 3)).expect("it fits");
            heard.finish(&mut engine);
            assert_near(&heard.prompts[&id], &exact);
            for told in &*heard.prompts[&id] {
                assert!(told.top.len() == 2 && told.top[0].logprob >= told.logprob);
            }
            assert_eq!(
                heard.tokens(id),
                common::alone(&program, CTX, &greedy(TEXT, 3)),
                "nothing else changes"
            );
        }
    }
}

#[test]
fn what_is_known_of_a_prompt_is_told_all_the_same() {
    for (program, backend) in setups() {
        let mut engine = engine_on(&*backend, &program, CTX, 2, 9);
        let mut heard = Heard::default();
        engine.submit(greedy(TEXT, 4)).expect("it fits");
        heard.finish(&mut engine);
        let id = engine.submit(logged(TEXT, 0, 4)).expect("it fits");
        heard.finish(&mut engine);
        assert_eq!((heard.prompts[&id].len(), heard.ends[&id].1.cached_tokens), (TEXT.len() - 1, 0));
        // It leaves its prompt to others as any other does.
        let after = engine.submit(greedy(TEXT, 4)).expect("it fits");
        heard.finish(&mut engine);
        assert!(heard.ends[&after].1.cached_tokens > 0);
        assert_eq!(heard.tokens(id), heard.tokens(after));
    }
}

/// A prompt of several choices is read once, and each of them is told of it: those that begin where the first is, and those
/// that find no place then.
#[test]
fn every_choice_is_told_of_the_prompt_that_was_read_once() {
    for (program, backend) in setups() {
        for max_tokens in [0, 5] {
            let mut engine = engine_on(&*backend, &program, CTX, 2, 9);
            let mut heard = Heard::default();
            let first = engine.submit(Request { n: 4, ..logged(TEXT, 3, max_tokens) }).expect("it fits");
            heard.finish(&mut engine);
            for id in (0..4).map(|i| first.choice(i)) {
                assert_eq!(heard.prompts[&id], heard.prompts[&first]);
                assert_eq!((heard.tokens(id).len(), heard.ends[&id].0), (max_tokens, FinishReason::Length));
            }
            // Those that came later ran what is not a whole block.
            let stats = engine.stats();
            assert_eq!((stats.forks, stats.prompt_tokens), (1, 3 * TEXT.len() as u64));
            assert!(stats.cached_tokens >= 2 * 32, "{stats:?}");
        }
    }
}

/// Of sixteen rows of logits each of sixteen prompts has one, and one that is alone has all.
#[test]
fn rows_of_logits_are_shared_out() {
    let program = transformer();
    let mut engine = Engine::new(&program, &CpuBackend::new(1), config(CTX, 16, 64)).expect("it is small");
    let mut heard = Heard::default();
    engine.submit(logged(TEXT, 0, 1)).expect("it fits");
    heard.step(&mut engine);
    assert_eq!((engine.batch().rows(), engine.batch().logit_rows().len()), (16, 16));
    for i in 0..20 {
        engine.submit(logged(&[&[i], TEXT].concat(), 0, 9)).expect("it fits");
    }
    // A prompt without wishes is in nobody's way and waits for nobody.
    let plain = engine.submit(Request { priority: 1, ..greedy(&[21; 20], 30) }).expect("it fits");
    heard.step(&mut engine);
    assert_eq!((engine.batch().spans().len(), engine.batch().logit_rows().len()), (16, 16));
    assert_eq!(heard.tokens(plain).len(), 1);
    let mut steps = 0;
    while !engine.is_idle() {
        heard.step(&mut engine);
        steps += 1;
    }
    assert_eq!(heard.prompts.len(), 21);
    assert!(steps < 2 * (TEXT.len() + 1 + 9), "{steps} steps");
}

#[test]
fn a_prompt_may_be_all_that_is_wanted() {
    for (program, backend) in setups() {
        let mut engine = engine_on(&*backend, &program, CTX, 1, 9);
        let full: Vec<u32> = (0..CTX as u32).map(|i| i * i % VOCAB as u32).collect();
        for prompt in [&full[..], &TEXT[..16], &[5]] {
            let mut heard = Heard::default();
            let id = engine.submit(logged(prompt, 1, 0)).expect("nothing comes after it");
            heard.finish(&mut engine);
            assert_eq!((heard.prompts[&id].len(), heard.tokens(id).len()), (prompt.len() - 1, 0));
            let (reason, stats) = heard.ends[&id];
            assert_eq!((reason, stats.generated), (FinishReason::Length, 0));
        }
        let too_long = engine.submit(logged(&[full, vec![1]].concat(), 1, 0));
        assert!(matches!(too_long, Err(EngineError::TooLong { max_tokens: 0, .. })));
        let too_many = engine.submit(logged(TEXT, 21, 0));
        assert!(matches!(too_many, Err(EngineError::Logprobs { asked: 21, .. })));
    }
}

/// From the token that is no number on nothing is a number; the prompt fails with it, wherever its chunks end.
#[test]
fn a_prompt_fails_with_the_first_token_that_is_no_number() {
    let program = transformer_without(7);
    for (chunk, n) in [(1, 1), (8, 1), (CTX, 1), (CTX, 3)] {
        let config = EngineConfig { logit_rows: CTX, ..config(CTX, 3, chunk) };
        let mut engine = Engine::new(&program, &ReferenceBackend, config).expect("it is small");
        engine.submit(Request { n, ..logged(TEXT, 0, 5) }).expect("it fits");
        let mut failed = 0;
        while !engine.is_idle() {
            for event in engine.step().expect("the step runs") {
                let why = event.fault().unwrap_or_else(|| panic!("{event:?}"));
                assert!(matches!(event, Event::Finished { reason: FinishReason::Failed, .. }));
                // The first 7 stands at position 13.
                assert!(why.contains("position 14 are not numbers"), "{why}");
                failed += 1;
            }
        }
        assert_eq!((failed, engine.books().cached, engine.audit()), (n, 0, Ok(())), "chunk {chunk}");
    }
}
