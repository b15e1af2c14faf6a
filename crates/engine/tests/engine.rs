//! What requests are told: limits, stop tokens, ends, holding and letting go.

mod common;

use common::{
    Heard, VOCAB, alone, config, engine, engine_on, greedy, programs, rwkv, setups, transformer,
    transformer_with_head, transformer_without,
};
use exotherm_engine::{
    Engine, EngineConfig, EngineError, Event, FinishReason, MemoryPlan, Request, Sampling,
};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{KvType, ProgramBuilder};

const CTX: usize = 64;

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let mut engine = engine(&transformer(), 16, 1, 8);
    let refused = |engine: &mut Engine, request: Request| {
        engine.submit(request).expect_err("it must be refused").to_string()
    };
    assert_eq!(refused(&mut engine, greedy(&[], 1)), "the prompt is empty");
    assert!(refused(&mut engine, greedy(&[1], 0)).contains("max_tokens is 0"));
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
fn the_memory_plan_is_what_the_backend_takes() {
    for program in programs() {
        for kv_type in [KvType::F32, KvType::F16] {
            let config = EngineConfig { kv_type, logit_rows: 5, ..config(50, 3, 20) };
            let plan = MemoryPlan::new(&program, &config);
            let mut engine = Engine::new(&program, &ReferenceBackend, config).expect("it is small");
            let taken = engine.executor().memory();
            assert_eq!(
                (plan.weights, plan.recurrent, plan.scratch),
                (taken.weights, taken.recurrent, taken.scratch)
            );
            if kv_type == KvType::F32 {
                // The reference keeps f16 values as f32.
                assert_eq!(plan.kv, taken.kv);
            } else {
                assert_eq!(2 * plan.kv, taken.kv);
            }
            assert_eq!(plan.total(), plan.weights + plan.kv + plan.recurrent + plan.scratch);
            assert_eq!(plan.kv % plan.kv_bytes_per_token.max(1), 0);
        }
    }
    let plan = MemoryPlan::new(&transformer(), &config(64, 1, 8));
    assert_eq!(
        plan.kv_bytes_per_token,
        2 * 2 * 2 * 6 * 2,
        "two layers of keys and values, two heads of six, f16"
    );
    assert_eq!(plan.kv, 64 * plan.kv_bytes_per_token);
    assert!(plan.to_string().contains("96 bytes per token"), "{plan}");
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
fn a_held_sequence_goes_on_where_it_was() {
    let program = transformer();
    let mut engine = engine(&program, CTX, 2, 8);
    let mut heard = Heard::default();
    let prompt: Vec<u32> = (0..20).map(|i| i % 23).collect();
    let first = engine.submit(Request { hold: true, ..greedy(&prompt, 6) }).expect("the request is fine");
    heard.finish(&mut engine);
    let used = engine.books().used;
    assert_eq!(used, 2, "25 tokens were run and are held in two blocks");

    // The last token of the answer was never run; the second turn adds to it.
    let mut second = prompt.clone();
    second.extend(heard.tokens(first));
    second.extend([5, 6]);
    let next = engine.submit_after(first, greedy(&second, 4)).expect("it is held");
    heard.finish(&mut engine);
    assert_eq!(heard.ends[&next].1.cached_tokens, 25);
    assert_eq!(heard.tokens(next), alone(&program, CTX, &greedy(&second, 4)));
    assert_eq!(engine.books().used, 0, "the second turn was not to be held");
    assert!(
        matches!(engine.submit_after(next, greedy(&second, 4)), Err(EngineError::NotHeld(id)) if id == next)
    );
}

#[test]
fn an_edited_history_keeps_what_is_common_and_gives_back_the_rest() {
    let mut edited: Vec<u32> = vec![2; 40];
    edited[17] = 9;
    for (program, cached, used) in [(transformer(), 17, 2), (rwkv(), 0, 0)] {
        let mut engine = engine(&program, CTX, 1, 8);
        let mut heard = Heard::default();
        let first =
            engine.submit(Request { hold: true, ..greedy(&[2; 40], 3) }).expect("the request is fine");
        heard.finish(&mut engine);
        let next = engine.submit_after(first, greedy(&edited, 4)).expect("it is held");
        assert_eq!(engine.books().used, used, "blocks behind the common beginning are given back");
        heard.finish(&mut engine);
        assert_eq!(heard.ends[&next].1.cached_tokens, cached);
        assert_eq!(heard.tokens(next), alone(&program, CTX, &greedy(&edited, 4)));
    }
}

#[test]
fn a_refused_next_turn_leaves_the_last_one_held() {
    let mut engine = engine(&transformer(), 16, 1, 8);
    let mut heard = Heard::default();
    let first = engine.submit(Request { hold: true, ..greedy(&[1, 2], 2) }).expect("the request is fine");
    assert!(
        matches!(engine.submit_after(first, greedy(&[1], 1)), Err(EngineError::NotHeld(_))),
        "it still runs"
    );
    heard.finish(&mut engine);
    assert!(matches!(engine.submit_after(first, greedy(&[1; 16], 1)), Err(EngineError::TooLong { .. })));
    let full = engine.submit(greedy(&[1], 1));
    assert!(matches!(full, Err(EngineError::AllHeld { max_seqs: 1 })), "it would wait for ever");
    engine.submit_after(first, greedy(&[1, 2, 3], 1)).expect("it is still held");
    heard.finish(&mut engine);
    engine.submit(greedy(&[1], 1)).expect("there is a place again");
}

#[test]
fn cancelling_gives_everything_back() {
    for program in programs() {
        let mut engine = engine(&program, CTX, 2, 4);
        let mut heard = Heard::default();
        let request = Request { hold: true, ..greedy(&[1; 20], 20) };
        let running = engine.submit(request.clone()).expect("there is a place");
        let plain = engine.submit(greedy(&[2; 20], 20)).expect("there is a place");
        let waiting = engine.submit(greedy(&[3; 20], 20)).expect("it can wait");
        for _ in 0..12 {
            heard.step(&mut engine);
        }
        assert!(!heard.tokens(running).is_empty());
        for id in [running, plain, waiting] {
            engine.cancel(id);
            engine.cancel(id);
        }
        assert_eq!(engine.books().used, 0);
        assert!(!engine.is_idle(), "the ends are still to be told");
        heard.finish(&mut engine);
        for id in [running, plain, waiting] {
            assert_eq!(heard.ends[&id].0, FinishReason::Cancelled);
        }
        assert_eq!(heard.tokens(waiting), []);

        let held = engine.submit(request).expect("there is a place");
        heard.finish(&mut engine);
        engine.cancel(held);
        assert_eq!(engine.books().used, 0);
        assert!(engine.is_idle(), "a held request had told its end");
    }
}

#[test]
fn an_interrupted_answer_can_be_gone_on_from() {
    for program in programs() {
        let mut engine = engine(&program, CTX, 1, 4);
        let mut heard = Heard::default();
        let first =
            engine.submit(Request { hold: true, ..greedy(&[1, 2, 3], 20) }).expect("there is a place");
        while heard.tokens(first).len() < 5 {
            heard.step(&mut engine);
        }
        engine.interrupt(first);
        heard.finish(&mut engine);
        assert_eq!(heard.ends[&first].0, FinishReason::Cancelled);
        let prompt: Vec<u32> = [1, 2, 3].into_iter().chain(heard.tokens(first)).chain([8]).collect();
        let next = engine.submit_after(first, greedy(&prompt, 6)).expect("it is held");
        heard.finish(&mut engine);
        assert_eq!(heard.ends[&next].1.cached_tokens, 7);
        assert_eq!(heard.tokens(next), alone(&program, CTX, &greedy(&prompt, 6)));
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error_and_end_the_requests_of_the_step() {
    let program = transformer_with_head(f32::NAN);
    for sampling in [Sampling::default(), Sampling { temperature: 1.0, ..Sampling::default() }] {
        let mut engine = engine(&program, CTX, 1, 8);
        let mut heard = Heard::default();
        let request = Request { sampling, hold: true, ..greedy(&[1, 2, 3], 4) };
        let id = engine.submit(request).expect("the request is fine");
        assert!(matches!(engine.step(), Err(EngineError::NotNumbers { position: 3 })));
        assert_eq!(engine.books().used, 0);
        heard.finish(&mut engine);
        assert_eq!((heard.tokens(id), heard.ends[&id].0), (vec![], FinishReason::Failed));
    }
}

#[test]
fn logits_that_are_no_numbers_end_their_own_request_alone() {
    let program = transformer_without(5);
    let mut engine = engine(&program, CTX, 3, 8);
    let mut heard = Heard::default();
    // Only the prompt of one of them has the token.
    let sampling = Sampling { logit_bias: vec![(5, -100.0)], ..Sampling::default() };
    let request = |prompt: &[u32]| Request { sampling: sampling.clone(), ..greedy(prompt, 4) };
    let mut submit = |prompt: &[u32]| engine.submit(request(prompt)).expect("there is a place");
    let (first, bad, last) = (submit(&[1, 2]), submit(&[3, 5]), submit(&[4, 6]));
    assert!(matches!(engine.step(), Err(EngineError::NotNumbers { position: 2 })));
    heard.finish(&mut engine);
    assert_eq!((heard.tokens(bad), heard.ends[&bad].0), (vec![], FinishReason::Failed));
    for (id, prompt) in [(first, [1, 2]), (last, [4, 6])] {
        assert_eq!(heard.ends[&id].0, FinishReason::Length);
        assert_eq!(heard.tokens(id), alone(&program, CTX, &request(&prompt)));
    }
    assert_eq!(engine.books().used, 0);
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
