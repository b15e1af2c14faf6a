//! What was computed of one request and is used for another: next turns, equal beginnings, choices of one prompt, and
//! sequences that had to make room.

mod common;

use common::{Heard, alone_on, config, engine_on, greedy, hybrid, programs, rwkv, transformer};
use exotherm_engine::{Engine, EngineConfig, FinishReason, Request, RequestId, Sampling};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::{BLOCK, Program};

const CTX: usize = 160;

/// The properties are tested on all backends.
fn backend() -> CpuBackend {
    CpuBackend::new(1)
}

fn engine(program: &Program, ctx: usize, max_seqs: usize, chunk: usize) -> Engine {
    engine_on(&backend(), program, ctx, max_seqs, chunk)
}

fn alone(program: &Program, ctx: usize, request: &Request) -> Vec<u32> {
    alone_on(&backend(), program, ctx, request)
}

fn text(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i + 3 * i) % 23).collect()
}

/// Runs a request to its end; what it said and how much of its prompt was there already.
fn run(engine: &mut Engine, request: &Request) -> (Vec<u32>, usize) {
    let mut heard = Heard::default();
    let id = engine.submit(request.clone()).expect("the request is fine");
    heard.finish(engine);
    (heard.tokens(id), heard.ends[&id].1.cached_tokens)
}

#[test]
fn the_next_turn_of_a_chat_runs_its_new_tokens_and_a_block_at_most() {
    for program in programs() {
        let mut engine = engine(&program, CTX, 2, 8);
        let mut history = text(20);
        for turn in 0..4 {
            let request = greedy(&history, 13);
            let (answer, cached) = run(&mut engine, &request);
            assert_eq!(answer, alone(&program, CTX, &request), "turn {turn}");
            if turn > 0 {
                let before = history.len() - 3;
                assert!(before - cached <= BLOCK, "turn {turn}: {cached} of {before} were there");
            }
            history.extend(answer);
            history.extend([5, 6, turn]);
        }
        assert_eq!(engine.books().used, 0);
    }
}

#[test]
fn an_equal_prompt_runs_its_last_block_only() {
    for program in programs() {
        for (length, cached) in [(1, 0), (15, 0), (16, 0), (17, 16), (33, 32), (48, 32), (50, 48)] {
            let mut engine = engine(&program, CTX, 1, 7);
            let request = greedy(&text(length), 5);
            let first = run(&mut engine, &request);
            assert_eq!(first, (alone(&program, CTX, &request), 0));
            assert_eq!(run(&mut engine, &request), (first.0, cached), "{length} tokens");
        }
    }
}

#[test]
fn what_differs_in_an_early_block_is_computed_anew_from_there() {
    for (program, cached) in [(transformer(), 16), (rwkv(), 0), (hybrid(), 0)] {
        let mut engine = engine(&program, CTX, 1, 9);
        run(&mut engine, &greedy(&text(70), 3));
        let mut edited = text(70);
        edited[20] = 22;
        let request = greedy(&edited, 4);
        assert_eq!(run(&mut engine, &request), (alone(&program, CTX, &request), cached));
        let stats = engine.stats();
        assert_eq!((stats.prompt_tokens, stats.cached_tokens), (140, cached as u64));
    }
}

#[test]
fn states_are_remembered_at_every_stride() {
    for program in [rwkv(), hybrid()] {
        let config = EngineConfig { snapshot_stride: 32, snapshots: 8, ..config(CTX, 1, 48) };
        let mut engine = Engine::new(&program, &backend(), config).expect("it is small");
        run(&mut engine, &greedy(&text(100), 1));
        assert_eq!((engine.stats().snapshots, engine.stats().snapshots_total), (3, 8), "at 32, 64 and 96");
        let mut edited = text(100);
        edited[70] = 22;
        let request = greedy(&edited, 4);
        assert_eq!(run(&mut engine, &request), (alone(&program, CTX, &request), 64));
        engine.forget_prefixes();
        assert_eq!((engine.stats().snapshots, engine.books().cached), (0, 0));
        assert_eq!(run(&mut engine, &request), (alone(&program, CTX, &request), 0));
    }
}

#[test]
fn long_chats_that_take_turns_find_their_own_ends() {
    const CHATS: u32 = 6;
    let config = EngineConfig { snapshot_stride: 32, snapshots: 2 * CHATS as usize, ..config(300, 2, 48) };
    let mut engine = Engine::new(&rwkv(), &backend(), config).expect("it is small");
    let mut histories: Vec<Vec<u32>> =
        (0..CHATS).map(|chat| text(200).iter().map(|token| (token + chat) % 23).collect()).collect();
    for turn in 0..3 {
        for (chat, history) in histories.iter_mut().enumerate() {
            let said = history.len();
            let (answer, cached) = run(&mut engine, &greedy(history, 20));
            history.extend(answer);
            history.extend([5, 6, turn]);
            // The last token of an answer is not run.
            let before = said - 4;
            assert!(turn == 0 || before - cached < BLOCK, "turn {turn} of {chat}: {cached} of {before}");
        }
    }
}

/// A prompt that begins like all of these and ends like no other.
fn on_a_topic(common: usize, own: usize, which: u32) -> Vec<u32> {
    text(common).into_iter().chain((0..own as u32).map(|i| (i * i + which) % 23)).collect()
}

#[test]
fn what_prompts_have_in_common_is_found_by_the_third_and_nearly_by_the_second() {
    for program in [rwkv(), hybrid()] {
        for (snapshots, second) in [(12, 640), (2, 512)] {
            let config = EngineConfig { snapshots, snapshot_stride: 512, ..config(900, 1, 100) };
            let mut engine = Engine::new(&program, &backend(), config).expect("it is small");
            let cached: Vec<_> = (0..4)
                .map(|which| {
                    let request = greedy(&on_a_topic(700, 40, which), 3);
                    let (answer, cached) = run(&mut engine, &request);
                    assert_eq!(answer, alone(&program, 900, &request), "prompt {which}");
                    cached
                })
                .collect();
            assert_eq!(cached, [0, second, 688, 688], "{snapshots} snapshots");
        }
    }
}

#[test]
fn nothing_is_displaced_for_states_near_the_end() {
    let config = EngineConfig { snapshots: 3, snapshot_stride: 128, ..config(400, 1, 100) };
    let mut engine = Engine::new(&rwkv(), &backend(), config).expect("it is small");
    let chats = [0, 1, 2].map(|which| greedy(&on_a_topic(0, 40, which), 3));
    chats.iter().for_each(|chat| drop(run(&mut engine, chat)));
    let mut rows = Vec::new();
    engine.submit(greedy(&on_a_topic(0, 120, 7), 3)).expect("it fits");
    while !engine.is_idle() {
        engine.step().expect("the step runs");
        rows.push(engine.batch().rows());
    }
    assert_eq!(rows, [100, 12, 8, 1, 1], "the prompt is not cut for them");
    let cached = chats[1..].iter().map(|chat| run(&mut engine, chat).1).collect::<Vec<_>>();
    assert_eq!(cached, [32, 32]);
}

#[test]
fn nothing_is_remembered_where_there_is_no_room_for_it() {
    let config = EngineConfig { snapshots: 0, ..config(CTX, 1, 48) };
    for program in [rwkv(), hybrid()] {
        let mut engine = Engine::new(&program, &backend(), config.clone()).expect("it is small");
        let request = greedy(&text(50), 5);
        for _ in 0..2 {
            assert_eq!(run(&mut engine, &request), (alone(&program, CTX, &request), 0));
        }
    }
}

fn choices(prompt: &[u32], n: usize) -> Request {
    let sampling = Sampling { temperature: 1.5, seed: 40, ..Sampling::default() };
    Request { n, sampling, ..greedy(prompt, 20) }
}

/// Each choice says what a request with its seed says alone.
fn check_choices(program: &Program, heard: &Heard, id: RequestId, request: &Request) {
    let mut all = Vec::new();
    for i in 0..request.n {
        let seed = request.sampling.seed + i as u64;
        let sampling = Sampling { seed, ..request.sampling.clone() };
        let tokens = alone(program, CTX, &Request { n: 1, sampling, ..request.clone() });
        assert_eq!(heard.tokens(id.choice(i)), tokens, "choice {i}");
        assert_eq!(heard.ends[&id.choice(i)].0, FinishReason::Length);
        all.push(tokens);
    }
    all.sort();
    all.dedup();
    assert!(all.len() > 1, "the choices differ");
}

#[test]
fn choices_share_their_prompt_and_go_their_own_ways() {
    for program in programs() {
        for length in [16, 37] {
            let mut engine = engine(&program, CTX, 4, 16);
            let mut heard = Heard::default();
            let request = choices(&text(length), 4);
            let id = engine.submit(request.clone()).expect("there is room");
            let mut rows = 0;
            while heard.tokens(id.choice(3)).is_empty() {
                heard.step(&mut engine);
                rows += engine.batch().rows();
            }
            assert_eq!(rows, length, "the prompt runs once");
            if !program.state().kv.is_empty() {
                assert_eq!(engine.books().used, length.div_ceil(BLOCK), "its blocks are there once");
            }
            heard.finish(&mut engine);
            check_choices(&program, &heard, id, &request);
            assert_eq!(engine.books().used, 0);
        }
    }
}

#[test]
fn choices_that_find_no_place_at_once_come_later() {
    for program in programs() {
        let mut engine = engine(&program, CTX, 2, 16);
        let mut heard = Heard::default();
        let request = choices(&text(37), 5);
        let id = engine.submit(request.clone()).expect("there is room");
        heard.finish(&mut engine);
        check_choices(&program, &heard, id, &request);
        let cached = heard.ends[&id.choice(4)].1.cached_tokens;
        assert_eq!(cached, 32, "the whole blocks of the prompt are there");
    }
}

#[test]
fn choices_go_past_nobody() {
    for program in programs() {
        let mut engine = engine(&program, CTX, 2, 4);
        let mut heard = Heard::default();
        let request = choices(&text(37), 3);
        let id = engine.submit(request.clone()).expect("there is room");
        heard.step(&mut engine);
        // It comes while the prompt is read, which takes all rows, and goes before the other choices.
        let urgent = Request { priority: 1, ..greedy(&[1, 2, 3], 6) };
        let urgent_id = engine.submit(urgent.clone()).expect("it can wait");
        while heard.tokens(urgent_id).is_empty() {
            heard.step(&mut engine);
            assert!(heard.tokens(id.choice(1)).is_empty(), "a choice took its place");
        }
        heard.finish(&mut engine);
        assert_eq!(heard.tokens(urgent_id), alone(&program, CTX, &urgent));
        check_choices(&program, &heard, id, &request);
        assert_eq!(engine.stats().forks, 0, "the place was taken when they could have begun");
    }
}

#[test]
fn choices_begin_only_where_there_are_blocks_for_them() {
    let program = transformer();
    // The prompt takes three, and whoever goes on needs a copy of the last.
    let config = EngineConfig { blocks: Some(5), ..config(64, 4, 64) };
    let mut engine = Engine::new(&program, &backend(), config).expect("it is small");
    let mut heard = Heard::default();
    let request = Request { max_tokens: 10, ..choices(&text(33), 4) };
    let id = engine.submit(request.clone()).expect("there is room");
    heard.step(&mut engine);
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.forks, stats.forked_tokens), (3, 1, 2, 66));
    heard.finish(&mut engine);
    check_choices(&program, &heard, id, &request);
    assert_eq!(engine.stats().preemptions, 0, "nobody had to make room");
    let forked = [0, 1, 2, 3].map(|i| heard.ends[&id.choice(i)].1.is_fork);
    assert_eq!(forked, [false, true, true, false]);
    assert_eq!(heard.ends[&id.choice(3)].1.cached_tokens, 32, "it finds the prompt's whole blocks");
}

#[test]
fn choices_outlive_the_one_that_reads_their_prompt() {
    for program in programs() {
        let mut engine = engine(&program, CTX, 2, 4);
        let mut heard = Heard::default();
        let request = choices(&text(37), 3);
        let id = engine.submit(request.clone()).expect("there is room");
        (0..3).for_each(|_| heard.step(&mut engine));
        engine.cancel(id);
        heard.finish(&mut engine);
        assert_eq!(heard.ends[&id].0, FinishReason::Cancelled);
        for i in 1..3 {
            let sampling = Sampling { seed: 40 + i as u64, ..request.sampling.clone() };
            let tokens = alone(&program, CTX, &Request { n: 1, sampling, ..request.clone() });
            assert_eq!(heard.tokens(id.choice(i)), tokens);
        }
    }
}

#[test]
fn a_sequence_that_made_room_says_the_same() {
    for program in [transformer(), hybrid()] {
        // Two of them do not fit to their ends, and each of them fits alone.
        let config = EngineConfig { blocks: Some(8), ..config(CTX, 3, 16) };
        let mut engine = Engine::new(&program, &backend(), config).expect("it is small");
        let mut heard = Heard::default();
        let requests: Vec<_> = (0..3).map(|i| choices(&text(20 + i), 1)).collect();
        let requests = requests.into_iter().map(|r| Request { max_tokens: 70, ..r });
        let requests: Vec<_> = requests.collect();
        let ids: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).expect("it fits alone")).collect();
        heard.finish(&mut engine);
        for (id, request) in ids.iter().zip(&requests) {
            assert_eq!(heard.tokens(*id), alone(&program, CTX, request));
        }
        assert_eq!(heard.ends[&ids[0]].1.preemptions, 0, "the first never makes room");
        let made_room: usize = ids.iter().map(|id| heard.ends[id].1.preemptions).sum();
        assert!(made_room > 0);
        assert_eq!(engine.stats().preemptions, made_room as u64);
    }
}

#[test]
fn a_pool_that_is_full_of_the_past_makes_room_for_the_present() {
    for program in [transformer(), hybrid()] {
        let mut engine = engine(&program, 48, 1, 48);
        for i in 0..9 {
            let prompt: Vec<u32> = text(30).iter().map(|t| (t + i) % 23).collect();
            let request = greedy(&prompt, 18);
            assert_eq!(run(&mut engine, &request).0, alone(&program, 48, &request));
            let books = engine.books();
            assert_eq!((books.free + books.cached, books.total), (3, 3));
        }
    }
}
