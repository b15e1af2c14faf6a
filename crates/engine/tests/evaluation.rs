//! Logits, perplexity and the check of one backend against another.

mod common;

use common::{
    config, programs, rwkv, setups, transformer, transformer_with_embedding, transformer_with_head,
};
use exotherm_engine::perplexity::perplexity;
use exotherm_engine::selfcheck::{QualityHash, Tolerance, compare_text, selfcheck};
use exotherm_engine::{EngineConfig, EngineError, Evaluator};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{Backend, Program};

fn evaluator(program: &Program, ctx: usize, chunk: usize, logit_rows: usize) -> Evaluator {
    evaluator_on(&ReferenceBackend, program, ctx, chunk, logit_rows)
}

fn evaluator_on(
    backend: &dyn Backend,
    program: &Program,
    ctx: usize,
    chunk: usize,
    logit_rows: usize,
) -> Evaluator {
    let config = EngineConfig { logit_rows, ..config(ctx, 1, chunk) };
    Evaluator::new(program, backend, &config).expect("it is small")
}

fn all_logits(evaluator: &mut Evaluator, tokens: &[u32]) -> Vec<Vec<f32>> {
    let all: Vec<usize> = (0..tokens.len()).collect();
    let mut rows = Vec::new();
    evaluator.logits(tokens, &all, |_, row| rows.push(row.to_vec())).expect("the tokens are fine");
    assert_eq!(rows.len(), tokens.len());
    rows
}

fn text(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i + 3 * i) % 23).collect()
}

#[test]
fn logits_are_the_same_in_chunks_of_any_size() {
    let tokens = text(37);
    for (program, backend) in setups() {
        let whole = all_logits(&mut evaluator_on(&*backend, &program, 40, 40, 40), &tokens);
        for (chunk, logit_rows) in [(1, 1), (5, 5), (16, 3), (17, 40), (40, 1)] {
            let mut evaluator = evaluator_on(&*backend, &program, 40, chunk, logit_rows);
            assert_eq!(
                all_logits(&mut evaluator, &tokens),
                whole,
                "chunk {chunk}, {logit_rows} rows of logits"
            );
            assert_eq!(
                all_logits(&mut evaluator, &tokens),
                whole,
                "the second time, from an empty state again"
            );
            let mut some = Vec::new();
            let positions = [30, 2, 2, 17];
            evaluator
                .logits(&tokens, &positions, |p, row| some.push((p, row.to_vec())))
                .expect("they are fine");
            assert_eq!(some, [2, 17, 30].map(|p| (p, whole[p].clone())));
        }
    }
}

#[test]
fn bad_tokens_and_positions_are_refused() {
    let mut evaluator = evaluator(&transformer(), 8, 8, 1);
    let mut refused = |tokens: &[u32], positions: &[usize]| {
        evaluator.logits(tokens, positions, |_, _| panic!("no logits")).expect_err("it must be refused")
    };
    assert!(matches!(refused(&[], &[]), EngineError::EmptyPrompt));
    assert!(matches!(refused(&[1; 9], &[0]), EngineError::TooManyTokens { tokens: 9, ctx: 8 }));
    assert!(matches!(refused(&[1, 23], &[0]), EngineError::Token { token: 23, vocab: 23 }));
    assert!(matches!(refused(&[1, 2], &[0, 2]), EngineError::Position { position: 2, tokens: 2 }));
}

/// −log softmax, written out.
fn nll(row: &[f32], token: u32) -> f64 {
    let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
    -(f64::from(row[token as usize]).exp() / sum).ln()
}

#[test]
fn perplexity_is_what_the_definition_gives() {
    let tokens = text(31); // three windows of 9 and four tokens over
    for program in [transformer(), rwkv()] {
        for bos in [None, Some(22)] {
            let mut values = Vec::new();
            for window in [&tokens[..9], &tokens[9..18], &tokens[18..27]] {
                let mut run = window.to_vec();
                run[0] = bos.unwrap_or(run[0]);
                let rows = all_logits(&mut evaluator(&program, 9, 9, 9), &run);
                // Positions 4 to 7 foretell tokens 5 to 8.
                values.extend((4..8).map(|p| nll(&rows[p], window[p + 1])));
            }
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            // The sample variance divided by n, with Bessel's correction, is (Σx²/n − mean²) / (n − 1).
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let (expected, error) = (mean.exp(), mean.exp() * (variance / n).sqrt());

            let mut seen = Vec::new();
            let mut evaluator = evaluator(&program, 9, 4, 2);
            let found =
                perplexity(&mut evaluator, &tokens, 9, bos, |so_far| seen.push(*so_far)).expect("it runs");
            assert!((found.value - expected).abs() < 1e-9 * expected, "{} {expected}", found.value);
            assert!((found.stderr - error).abs() < 1e-9 * error, "{} {error}", found.stderr);
            assert_eq!((found.tokens, found.windows, found.windows_total), (12, 3, 3));
            assert_eq!(seen.iter().map(|p| p.windows).collect::<Vec<_>>(), [1, 2, 3]);
            assert_eq!(seen.last(), Some(&found));
        }
    }
}

#[test]
fn even_logits_have_the_perplexity_of_the_vocabulary() {
    let mut evaluator = evaluator(&transformer_with_head(0.0), 8, 8, 4);
    let found = perplexity(&mut evaluator, &text(16), 8, None, |_| ()).expect("it runs");
    assert!((found.value - 23.0).abs() < 1e-9);
    assert!(found.stderr < 1e-6, "{}", found.stderr);
}

#[test]
fn texts_too_short_and_bad_logits_are_errors() {
    let mut fine = evaluator(&transformer(), 8, 8, 4);
    let short = perplexity(&mut fine, &text(15), 8, None, |_| ());
    assert!(matches!(short, Err(EngineError::TooFewTokens { ctx: 8, need: 16, have: 15 })), "{short:?}");
    let tiny = perplexity(&mut fine, &text(15), 2, None, |_| ());
    assert!(matches!(tiny, Err(EngineError::Config { name: "ctx", value: 2, .. })), "{tiny:?}");
    let wide = perplexity(&mut fine, &text(30), 9, None, |_| ());
    assert!(matches!(wide, Err(EngineError::TooManyTokens { tokens: 9, ctx: 8 })), "{wide:?}");
    let mut broken = evaluator(&transformer_with_head(f32::NAN), 8, 8, 4);
    let bad = perplexity(&mut broken, &text(16), 8, None, |_| ());
    assert!(matches!(bad, Err(EngineError::NotNumbers { position: 4 })), "{bad:?}");
}

const TOLERANCE: Tolerance =
    Tolerance { op_error: 1e-4, cache_error: 1e-4, kl: 1e-6, mean_kl: 1e-6, top1: 1.0, flip: 1e-3 };

#[test]
fn a_backend_agrees_with_itself() {
    for program in programs() {
        let (mut a, mut b) = (evaluator(&program, 40, 16, 16), evaluator(&program, 40, 7, 3));
        let mut rows = Vec::new();
        let report = selfcheck(&mut a, &mut b, &text(20), 10, TOLERANCE, |done, all| rows.push((done, all)))
            .expect("runs");
        assert!(report.agrees());
        assert_eq!((report.positions, report.agreements, report.top1_agreement()), (20, 20, 1.0));
        assert_eq!((report.mean_kl, report.max_kl, report.worst_flip), (0.0, 0.0, 0.0));
        assert_eq!(report.worst_op.map(|d| d.error), Some(0.0));
        assert_eq!(report.output.len(), 10);
        assert_eq!(report.reference_hash(), report.hash());
        assert_eq!(rows.last(), Some(&(30, 30)));
        // The continuation is what greedy decoding gives.
        assert_eq!(report.output, common::alone(&program, 40, &common::greedy(&text(20), 10)));
    }
}

#[test]
fn the_cpu_agrees_with_the_reference() {
    for program in programs() {
        let mut a = evaluator(&program, 40, 16, 16);
        let mut b = evaluator_on(&CpuBackend::new(2), &program, 40, 16, 16);
        let report = selfcheck(&mut a, &mut b, &text(20), 10, TOLERANCE, |_, _| ()).expect("it runs");
        assert!(report.agrees(), "{report:?}");
        assert_eq!((report.agreements, report.hash()), (20, report.reference_hash()));
        assert!(report.worst_op.is_some_and(|d| d.error > 0.0), "two ways of adding up differ somewhere");
    }
}

#[test]
fn a_backend_that_computes_something_else_is_found_out() {
    let (right, wrong) = (transformer(), transformer_with_head(1.5));
    let (mut a, mut b) = (evaluator(&right, 40, 16, 16), evaluator(&wrong, 40, 16, 16));
    let report = selfcheck(&mut a, &mut b, &text(20), 5, TOLERANCE, |_, _| ()).expect("it runs");
    assert!(!report.agrees());
    let first = report.first_divergence.expect("the heads differ");
    assert_eq!((first.op, first.name, first.buffer), (right.ops().len() - 1, "head", "logits"));
    assert!((first.error - 0.5).abs() < 1e-3, "{first:?}");
    assert!(report.max_kl > 1e-3 && report.mean_kl <= report.max_kl);
    // Larger logits have the same order, so both write the same.
    assert_eq!((report.agreements, report.worst_flip), (20, 0.0));
    assert_eq!(report.hash(), report.reference_hash());

    let mut negative = evaluator(&transformer_with_head(-1.0), 40, 16, 16);
    let report = selfcheck(&mut a, &mut negative, &text(20), 5, TOLERANCE, |_, _| ()).expect("it runs");
    assert!(!report.agrees() && report.worst_flip > 0.1 && report.agreements < 20);
    assert_ne!(report.hash(), report.reference_hash());

    let mut broken = evaluator(&transformer_with_head(f32::NAN), 40, 16, 16);
    let report = selfcheck(&mut a, &mut broken, &text(20), 5, TOLERANCE, |_, _| ()).expect("it runs");
    assert!(!report.agrees());
    assert_eq!(report.first_divergence.map(|d| d.error), Some(f64::INFINITY));
    assert_eq!(report.max_kl, f64::INFINITY);
}

#[test]
fn one_wrong_op_is_the_only_one_that_is_named() {
    // The embedding is wrong, and with it all that follows; but each op is asked about the same values.
    let (right, wrong) = (transformer(), transformer_with_embedding(1.01));
    let (mut a, mut b) = (evaluator(&right, 40, 16, 16), evaluator(&wrong, 40, 16, 16));
    let tolerance = Tolerance { op_error: 0.02, ..TOLERANCE };
    let report = selfcheck(&mut a, &mut b, &text(20), 0, tolerance, |_, _| ()).expect("it runs");
    let worst = report.worst_op.expect("there are ops");
    assert_eq!((worst.op, worst.name), (0, "embed"));
    assert!((worst.error - 0.01).abs() < 1e-5 && report.first_divergence.is_none(), "{report:?}");
    assert!(report.max_kl > 0.0 && !report.agrees(), "the distributions are not levelled: {report:?}");
}

#[test]
fn a_text_is_compared_in_windows() {
    let (right, wrong) = (transformer(), transformer_with_head(1.5));
    let (mut a, mut b) = (evaluator(&right, 8, 8, 8), evaluator(&wrong, 8, 3, 2));
    let mut rows = Vec::new();
    let tokens = text(20);
    let report = compare_text(&mut a, &mut b, &tokens, 8, TOLERANCE, |done, all| rows.push((done, all)))
        .expect("it runs");
    assert_eq!((report.positions, report.agreements), (20, 20));
    assert_eq!(rows.last(), Some(&(20, 20)));
    assert!(!report.agrees() && report.worst_op.is_none() && report.output.is_empty());
    // The mean and the maximum are those of the windows run one by one.
    let parts: Vec<_> = tokens
        .chunks(8)
        .map(|w| compare_text(&mut a, &mut b, w, 8, TOLERANCE, |_, _| ()).expect("it runs"))
        .collect();
    let sum: f64 = parts.iter().map(|r| r.mean_kl * r.positions as f64).sum();
    assert!((sum / 20.0 - report.mean_kl).abs() < 1e-12 && report.mean_kl > 0.0);
    assert_eq!(parts.iter().map(|r| r.max_kl).fold(0.0, f64::max), report.max_kl);
    let same = compare_text(&mut evaluator(&right, 8, 5, 5), &mut a, &tokens, 8, TOLERANCE, |_, _| ());
    assert!(same.is_ok_and(|report| report.agrees() && report.mean_kl == 0.0));
    let none = compare_text(&mut a, &mut b, &tokens, 0, TOLERANCE, |_, _| ());
    assert!(matches!(none, Err(EngineError::Config { name: "window", value: 0, .. })));
    let wide = compare_text(&mut a, &mut b, &tokens, 9, TOLERANCE, |_, _| ());
    assert!(matches!(wide, Err(EngineError::TooManyTokens { tokens: 9, ctx: 8 })));
    assert!(matches!(
        compare_text(&mut a, &mut b, &[], 8, TOLERANCE, |_, _| ()),
        Err(EngineError::EmptyPrompt)
    ));
}

#[test]
fn the_quality_hash_is_fnv1a() {
    // FNV-1a of the bytes "foobar" and four zeros would be another; these are of whole ids.
    assert_eq!(QualityHash::of(&[]).to_string(), "cbf29ce484222325");
    assert_eq!(
        QualityHash::of(&[u32::from_le_bytes(*b"chon"), u32::from_le_bytes(*b"gong")]),
        fnv(b"chongong")
    );
    assert_ne!(QualityHash::of(&[1, 2]), QualityHash::of(&[2, 1]));
}

/// The published offset basis and prime, one byte at a time.
fn fnv(bytes: &[u8]) -> QualityHash {
    let mut hash: u64 = 14_695_981_039_346_656_037;
    for &byte in bytes {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(1_099_511_628_211);
    }
    QualityHash(hash)
}
