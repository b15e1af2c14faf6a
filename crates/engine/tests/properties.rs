//! What must hold whatever is asked in whatever order.

mod common;

use common::{Heard, VOCAB, alone_on, engine_on, greedy, setups};
use exotherm_engine::{FinishReason, Request, RequestId, Sampling};
use proptest::collection::vec;
use proptest::prelude::*;

const CTX: usize = 56;

fn tokens(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u32>> {
    vec(0..VOCAB as u32, len)
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let filters = (0usize..12, 0.5f32..=1.0, prop_oneof![Just(0.0f32), 0.0f32..0.2]);
    let penalties = (prop_oneof![Just(1.0f32), 0.8f32..1.5], prop_oneof![Just(0.0f32), -0.5f32..0.5]);
    let bias = vec((0..VOCAB as u32, -5.0f32..5.0), 0..3);
    (prop_oneof![Just(0.0f32), 0.5f32..2.0], filters, penalties, bias, any::<u64>()).prop_map(
        |(temperature, (top_k, top_p, min_p), (repeat_penalty, penalty), logit_bias, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            presence_penalty: penalty,
            frequency_penalty: -penalty / 2.0,
            logit_bias,
            seed,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    (tokens(1..40), 1usize..16, sampling(), tokens(0..2)).prop_map(
        |(prompt, max_tokens, sampling, stop_tokens)| Request {
            prompt,
            max_tokens,
            sampling,
            logprobs: None,
            stop_tokens,
            hold: false,
        },
    )
}

#[derive(Clone, Debug)]
enum Action {
    Submit(Request),
    Continue { which: usize, extra: Vec<u32>, hold: bool },
    Cancel(usize),
    Interrupt(usize),
    Steps(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (request(), any::<bool>()).prop_map(|(r, hold)| Action::Submit(Request { hold, ..r })),
        2 => (any::<usize>(), tokens(1..6), any::<bool>())
            .prop_map(|(which, extra, hold)| Action::Continue { which, extra, hold }),
        1 => any::<usize>().prop_map(Action::Cancel),
        1 => any::<usize>().prop_map(Action::Interrupt),
        4 => (1usize..8).prop_map(Action::Steps),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Equal seeds give equal tokens, whatever runs beside them and however the prompt is cut.
    #[test]
    fn a_request_gets_the_same_tokens_alone_and_among_others(
        requests in vec((request(), 0usize..6), 1..6),
        max_seqs in 1usize..4,
        chunk in 1usize..30,
    ) {
        for (program, backend) in setups() {
            let mut engine = engine_on(&*backend, &program, CTX, max_seqs, chunk);
            let mut heard = Heard::default();
            let mut ids = Vec::new();
            for (request, steps) in &requests {
                ids.push(engine.submit(request.clone()).expect("the request fits"));
                (0..*steps).for_each(|_| heard.step(&mut engine));
            }
            heard.finish(&mut engine);
            for ((request, _), id) in requests.iter().zip(ids) {
                prop_assert_eq!(heard.tokens(id), alone_on(&*backend, &program, CTX, request));
                let reason = heard.ends[&id].0;
                if let FinishReason::Stop(token) = reason {
                    prop_assert!(request.stop_tokens.contains(&token));
                } else {
                    prop_assert_eq!(reason, FinishReason::Length);
                    prop_assert_eq!(heard.tokens(id).len(), request.max_tokens);
                }
            }
            prop_assert_eq!(engine.books().used, 0);
        }
    }

    /// A next turn over a held sequence, edited anywhere, gives what a fresh run of the whole prompt gives.
    #[test]
    fn a_next_turn_equals_a_fresh_prompt(
        first in request(),
        kept in 0usize..60,
        added in tokens(1..10),
        next in (sampling(), 1usize..8),
        chunk in 1usize..30,
    ) {
        for (program, backend) in setups() {
            let ctx = 80;
            let mut engine = engine_on(&*backend, &program, ctx, 2, chunk);
            let mut heard = Heard::default();
            let held = engine.submit(Request { hold: true, ..first.clone() }).expect("the request fits");
            heard.finish(&mut engine);
            let mut prompt = first.prompt.clone();
            prompt.extend(heard.tokens(held));
            let run = prompt.len() - usize::from(heard.ends[&held].0 == FinishReason::Length);
            prompt.truncate(kept);
            prompt.extend(&added);
            let (sampling, max_tokens) = next.clone();
            let request = Request { sampling, ..greedy(&prompt, max_tokens) };
            let id = engine.submit_after(held, request.clone()).expect("it is held");
            heard.finish(&mut engine);
            prop_assert_eq!(heard.tokens(id), alone_on(&*backend, &program, ctx, &request));
            let cached = heard.ends[&id].1.cached_tokens;
            prop_assert!(cached < request.prompt.len());
            if program.state().recurrent.is_empty() {
                prop_assert!(cached >= kept.min(run).min(request.prompt.len() - 1));
            } else {
                prop_assert!(cached == 0 || cached == run, "recurrent state is kept whole or not at all");
            }
            prop_assert_eq!(engine.books().used, 0);
        }
    }

    /// Blocks are neither lost nor shared, whatever happens; and every request ends once.
    #[test]
    fn the_books_balance_after_any_schedule(
        actions in vec(action(), 1..40),
        max_seqs in 1usize..4,
        chunk in 1usize..20,
    ) {
        for (program, backend) in setups() {
            let mut engine = engine_on(&*backend, &program, CTX, max_seqs, chunk);
            let mut heard = Heard::default();
            let mut ids: Vec<RequestId> = Vec::new();
            let total = engine.books().total;
            for action in &actions {
                let pick = |which: usize| ids.get(which % ids.len().max(1)).copied();
                let new = match action {
                    Action::Submit(request) => engine.submit(request.clone()).ok(),
                    Action::Continue { which, extra, hold } => pick(*which).and_then(|id| {
                        let prompt: Vec<u32> = heard.tokens(id).into_iter().chain(extra.iter().copied()).collect();
                        let request = Request { hold: *hold, ..greedy(&prompt, 3) };
                        engine.submit_after(id, request).ok()
                    }),
                    Action::Cancel(which) => {
                        pick(*which).into_iter().for_each(|id| engine.cancel(id));
                        None
                    }
                    Action::Interrupt(which) => {
                        pick(*which).into_iter().for_each(|id| engine.interrupt(id));
                        None
                    }
                    Action::Steps(n) => {
                        (0..*n).for_each(|_| heard.step(&mut engine));
                        None
                    }
                };
                ids.extend(new);
                prop_assert!(engine.books().balance());
            }
            heard.finish(&mut engine);
            for &id in &ids {
                prop_assert!(heard.ends.contains_key(&id), "{id} never ended");
                engine.cancel(id);
            }
            prop_assert!(engine.is_idle(), "held requests have told their ends");
            let books = engine.books();
            prop_assert_eq!((books.free, books.used, books.total), (total, 0, total));
        }
    }
}
