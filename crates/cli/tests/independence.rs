//! A request says the same bytes alone and among others, whatever it shares with them: on a tiny model of every family.

use std::path::Path;

use exotherm_engine::{
    Engine, EngineConfig, Event, FinishReason, Request, RequestId, Sampling, TokenLogprobs,
};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::{BLOCK, KvType, Program};
use exotherm_models::{FAMILIES, LoadOptions, Model, load};
use exotherm_weights::Checkpoint;

const CTX: usize = 48;
const MODELS: [&str; 8] =
    ["gemma3", "gemma3-six", "gpt2", "llama-rope3", "qwen2", "qwen3", "qwen3moe", "rwkv7/model.gguf"];

/// A splitmix64 stream.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

fn golden(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden").join(name);
    let mut checkpoint = Checkpoint::open(&path).expect("a golden model");
    load(&mut checkpoint, &LoadOptions::default()).expect("it loads")
}

/// A prompt on one of two topics, which begin alike for a while, and how to answer it.
fn request(numbers: &mut Numbers, vocab: usize) -> Request {
    let topic = numbers.below(2);
    let mut prompt: Vec<u32> = (0..numbers.below(28)).map(|i| ((i * i + 7 * topic) % vocab) as u32).collect();
    prompt.extend((0..=numbers.below(4)).map(|_| numbers.below(vocab) as u32));
    let sampling = match numbers.below(2) {
        0 => Sampling::default(),
        _ => {
            Sampling { temperature: 1.0, top_k: 20, seed: numbers.below(1000) as u64, ..Sampling::default() }
        }
    };
    let n = if numbers.below(4) == 0 { 2 } else { 1 };
    let logprobs = [None, Some(0), Some(5), Some(20)][numbers.below(4)];
    let prompt_logprobs = [None, None, None, Some(4)][numbers.below(4)];
    Request { sampling, n, logprobs, prompt_logprobs, ..Request::new(prompt, 1 + numbers.below(16)) }
}

/// A token, `None` for those of the prompt, and the log-probabilities that were told with it.
type Said = (RequestId, Option<u32>, Vec<TokenLogprobs>);

fn step(engine: &mut Engine, said: &mut Vec<Said>) {
    for event in engine.step().expect("it runs") {
        match event {
            Event::Prompt { id, logprobs } => said.push((*id, None, logprobs.to_vec())),
            Event::Token { id, token, logprobs, .. } => {
                said.push((*id, Some(*token), logprobs.iter().map(|told| (**told).clone()).collect()));
            }
            Event::Finished { reason, .. } => assert_eq!(*reason, FinishReason::Length),
        }
    }
}

/// How much is under way at a time.
#[derive(Clone, Copy)]
enum Crowd {
    /// A few, with so few blocks that they must make room for one another.
    Few,
    /// Sixteen in one step.
    Sixteen,
}

/// Compares what everybody says in a crowd with what it says alone; how often somebody had to make room.
fn check(name: &str, program: &Program, crowd: Crowd, kv_type: KvType, seed: u64) -> u64 {
    let backend = CpuBackend::new(1);
    let mut numbers = Numbers(seed);
    let (max_seqs, blocks, chunk, requests, pause) = match crowd {
        Crowd::Few => (3 + numbers.below(3), CTX / BLOCK + numbers.below(3), 1 + numbers.below(30), 30, 4),
        Crowd::Sixteen => (16, 16 * CTX / BLOCK, 60 + numbers.below(60), 40, 2),
    };
    let config = EngineConfig {
        max_seqs,
        kv_type,
        chunk,
        blocks: Some(blocks),
        snapshot_stride: BLOCK,
        ..EngineConfig::new(CTX)
    };
    let mut engine = Engine::new(program, &backend, config).expect("it is small");
    let (mut asked, mut said, mut most) = (Vec::new(), Vec::new(), 0);
    let mut step_of_crowd = |engine: &mut Engine| {
        step(engine, &mut said);
        most = most.max(engine.batch().spans().len());
    };
    for _ in 0..requests {
        let request = request(&mut numbers, program.vocab());
        let id = engine.submit(request.clone()).expect("it fits");
        asked.extend((0..request.n).map(|i| (id.choice(i), i, request.clone())));
        (0..numbers.below(pause)).for_each(|_| step_of_crowd(&mut engine));
    }
    while !engine.is_idle() {
        step_of_crowd(&mut engine);
    }
    assert_eq!(engine.audit(), Ok(()));
    assert!(matches!(crowd, Crowd::Few) || most == 16, "{name}, seed {seed}: only {most} in a step");
    let config = EngineConfig { chunk: CTX, logit_rows: CTX, kv_type, ..EngineConfig::new(CTX) };
    let mut lonely = Engine::new(program, &backend, config).expect("it is small");
    for (id, choice, mut request) in asked {
        request.sampling.seed += choice as u64;
        request.n = 1;
        lonely.forget_prefixes();
        let mut alone = Vec::new();
        lonely.submit(request).expect("it fits");
        while !lonely.is_idle() {
            step(&mut lonely, &mut alone);
        }
        let tokens = said.iter().filter(|(of, ..)| *of == id).map(|(_, token, logprobs)| (token, logprobs));
        let alone = alone.iter().map(|(_, token, logprobs)| (token, logprobs));
        assert!(tokens.eq(alone), "{name}, seed {seed}, {kv_type:?}: {id}");
    }
    let stats = engine.stats();
    assert!(stats.cached_tokens > 0, "{name}, seed {seed}: nothing was shared");
    stats.preemptions
}

#[test]
fn every_family_says_what_it_says_alone() {
    let mut seen = Vec::new();
    for name in MODELS {
        let model = golden(name);
        let preemptions: u64 = [KvType::F16, KvType::F32, KvType::F16]
            .into_iter()
            .zip(0..)
            .map(|(kv_type, seed)| check(name, &model.program, Crowd::Few, kv_type, seed))
            .sum();
        for (kv_type, seed) in [(KvType::F16, 3), (KvType::F32, 4)] {
            check(name, &model.program, Crowd::Sixteen, kv_type, seed);
        }
        let has_kv = !model.program.state().kv.is_empty();
        assert!(!has_kv || preemptions > 0, "{name}: nobody had to make room");
        seen.push(model.info.family);
    }
    for family in FAMILIES {
        assert!(seen.contains(&family.name), "no model of the family {}", family.name);
    }
}
