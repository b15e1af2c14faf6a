//! What must hold whatever is asked in whatever order.

mod common;

use common::{Heard, VOCAB, config, greedy, heard_alone, programs};
use exotherm_engine::{Engine, EngineConfig, FinishReason, Request, RequestId, Sampling};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{BLOCK, Backend, KvType};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

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
            vocab: usize::MAX,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    // Prompts on one of two topics begin alike for a while.
    let prompt = (0u32..2, 0usize..34, tokens(1..6)).prop_map(|(topic, common, own)| {
        (0..common as u32).map(|i| (i * i + topic) % VOCAB as u32).chain(own).collect::<Vec<u32>>()
    });
    let n = prop_oneof![4 => Just(1usize), 1 => 2usize..4];
    let logprobs = || prop_oneof![3 => Just(None), 1 => (0u8..21).prop_map(Some)];
    (prompt, 0usize..16, sampling(), tokens(0..2), n, -2i32..3, (logprobs(), logprobs())).prop_map(
        |(prompt, max_tokens, sampling, stop_tokens, n, priority, (logprobs, prompt_logprobs))| Request {
            sampling,
            logprobs,
            prompt_logprobs,
            stop_tokens,
            n,
            priority,
            ..Request::new(prompt, max_tokens)
        },
    )
}

/// How much of everything there is.
fn sizes() -> impl Strategy<Value = EngineConfig> {
    // Four blocks are a full context; more than four sequences can use are more to remember.
    let max_seqs = prop_oneof![3 => 1usize..4, 1 => Just(16)];
    let pool = (max_seqs, prop_oneof![Just(None), (4usize..18).prop_map(Some)]);
    let kv_type = prop_oneof![Just(KvType::F16), Just(KvType::F32)];
    let rows = (1usize..30, 1usize..9);
    (pool, rows, 0usize..7, 0usize..3, kv_type).prop_map(
        |((max_seqs, blocks), (chunk, logit_rows), snapshots, stride, kv_type)| {
            let (snapshot_stride, config) = (BLOCK * stride, config(CTX, max_seqs, chunk));
            EngineConfig { blocks, logit_rows, snapshots, snapshot_stride, kv_type, ..config }
        },
    )
}

#[derive(Clone, Debug)]
enum Action {
    Submit(Request),
    /// A request that goes on from what another has said so far, but for the last few tokens of it.
    Continue {
        which: usize,
        without: usize,
        extra: Vec<u32>,
    },
    Cancel(usize),
    Forget,
    Steps(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => request().prop_map(Action::Submit),
        3 => (any::<usize>(), 0usize..20, tokens(1..6))
            .prop_map(|(which, without, extra)| Action::Continue { which, without, extra }),
        2 => any::<usize>().prop_map(Action::Cancel),
        1 => Just(Action::Forget),
        8 => (1usize..8).prop_map(Action::Steps),
    ]
}

/// Every request and choice that was taken in, as it would have been asked for alone.
type Asked = Vec<(RequestId, Request)>;

fn submit(engine: &mut Engine, asked: &mut Asked, request: Request) {
    let Ok(id) = engine.submit(request.clone()) else { return };
    for i in 0..request.n {
        let seed = request.sampling.seed.wrapping_add(i as u64);
        let sampling = Sampling { seed, ..request.sampling.clone() };
        asked.push((id.choice(i), Request { n: 1, sampling, ..request.clone() }));
    }
}

fn act(action: &Action, engine: &mut Engine, heard: &mut Heard, asked: &mut Asked) {
    let pick = |which: usize| which % asked.len().max(1);
    match action {
        Action::Submit(request) => submit(engine, asked, request.clone()),
        Action::Continue { which, without, extra } => {
            let Some((id, before)) = asked.get(pick(*which)) else { return };
            let mut prompt = before.prompt.clone();
            prompt.extend(heard.tokens(*id));
            prompt.truncate(prompt.len().saturating_sub(*without));
            prompt.extend(extra);
            let sampling = before.sampling.clone();
            submit(engine, asked, Request { sampling, ..greedy(&prompt, 5) });
        }
        Action::Cancel(which) => asked.get(pick(*which)).iter().for_each(|(id, _)| engine.cancel(*id)),
        Action::Forget => engine.forget_prefixes(),
        Action::Steps(n) => (0..*n).for_each(|_| heard.step(engine)),
    }
}

/// A request says the same bytes alone, its prompt in one piece in an engine that remembers nothing, and among any
/// others, in chunks of any size, after beginnings that are there already, as one of several choices, and when it had
/// to make room. And every request ends once, with everything given back.
fn each_says_what_it_says_alone(
    backend: &dyn Backend,
    actions: &[Action],
    sizes: &EngineConfig,
) -> Result<(), TestCaseError> {
    for program in programs() {
        let mut engine = Engine::new(&program, backend, sizes.clone()).expect("it is small");
        let (mut heard, mut asked) = (Heard::default(), Asked::new());
        for action in actions {
            act(action, &mut engine, &mut heard, &mut asked);
            prop_assert!(engine.books().balance());
        }
        heard.finish(&mut engine);
        let lonely = EngineConfig { kv_type: sizes.kv_type, logit_rows: CTX, ..config(CTX, 1, CTX) };
        let mut lonely = Engine::new(&program, backend, lonely).expect("it is small");
        for (id, request) in &asked {
            let (tokens, (own, by_itself)) = (heard.tokens(*id), heard_alone(&mut lonely, request));
            let (alone, reason) = (by_itself.tokens(own), heard.ends[id].0);
            let logprobs = |heard: &Heard, id| heard.logprobs.get(&id).cloned().unwrap_or_default();
            prop_assert_eq!(logprobs(&heard, *id), &logprobs(&by_itself, own)[..tokens.len()]);
            let (prompt, prompt_alone) = (heard.prompts.get(id), by_itself.prompts.get(&own));
            prop_assert_eq!(prompt_alone.is_some(), request.prompt_logprobs.is_some());
            prop_assert!(prompt == prompt_alone || prompt.is_none() && reason == FinishReason::Cancelled);
            match reason {
                FinishReason::Cancelled => prop_assert_eq!(&tokens[..], &alone[..tokens.len()]),
                _ => prop_assert_eq!(&tokens, &alone),
            }
            match reason {
                FinishReason::Stop(token) => prop_assert!(request.stop_tokens.contains(&token)),
                FinishReason::Length => prop_assert_eq!(tokens.len(), request.max_tokens),
                other => prop_assert_eq!(other, FinishReason::Cancelled),
            }
        }
        let books = engine.books();
        prop_assert_eq!((books.used, books.free + books.cached), (0, books.total));
    }
    Ok(())
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn on_the_cpu(actions in vec(action(), 1..40), sizes in sizes()) {
        each_says_what_it_says_alone(&CpuBackend::new(1), &actions, &sizes)?;
    }
}

proptest! {
    // It takes much longer.
    #![proptest_config(cases(4))]

    #[test]
    fn on_the_reference(actions in vec(action(), 1..40), sizes in sizes()) {
        each_says_what_it_says_alone(&ReferenceBackend, &actions, &sizes)?;
    }
}
