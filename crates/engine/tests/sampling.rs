//! Choosing tokens: the order of the filters, the distribution, the penalties, ties and values that are no
//! numbers.

use exotherm_engine::EngineError;
use exotherm_engine::sampling::{Sampler, Sampling, uniform};
use proptest::collection::vec;
use proptest::prelude::*;

fn warm() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::default() }
}

fn choose(sampling: &Sampling, logits: &[f32], prompt: &[u32], output: &[u32]) -> u32 {
    Sampler::default().sample(sampling, logits, prompt, output).expect("the logits are numbers")
}

/// How often each token is drawn with the seeds `0..n`.
fn counts(sampling: &Sampling, logits: &[f32], n: u64) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    let mut sampler = Sampler::default();
    for seed in 0..n {
        let token = sampler.sample(&Sampling { seed, ..*sampling }, logits, &[0], &[]).expect("numbers");
        counts[token as usize] += 1.0;
    }
    counts
}

/// Pearson's statistic over the tokens that are expected at all; the others must not have been drawn.
fn chi_square(counts: &[f64], probabilities: &[f64]) -> f64 {
    let n: f64 = counts.iter().sum();
    let mut sum = 0.0;
    for (&count, &p) in counts.iter().zip(probabilities) {
        if p == 0.0 {
            assert_eq!(count, 0.0, "a token that was filtered out was drawn");
        } else {
            sum += (count - n * p).powi(2) / (n * p);
        }
    }
    sum
}

fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    let p = [0.05, 0.3, 0.1, 0.2, 0.15, 0.08, 0.07, 0.05];
    let logits = logits_of(&p);
    // Seven degrees of freedom: a fair draw passes 29.9 once in ten thousand; the draws are counted, so
    // always alike.
    assert!(chi_square(&counts(&warm(), &logits, 40_000), &p) < 29.9);

    // Over positions of one seed, too.
    let mut by_position = vec![0.0; p.len()];
    let mut sampler = Sampler::default();
    let history = vec![0; 20_000];
    for n in 0..history.len() {
        let token = sampler.sample(&Sampling { seed: 5, ..warm() }, &logits, &history[..n], &[]);
        by_position[token.expect("numbers") as usize] += 1.0;
    }
    assert!(chi_square(&by_position, &p) < 29.9);

    // At temperature 2 the probabilities' square roots count.
    let roots: Vec<f64> = p.iter().map(|p: &f64| p.sqrt()).collect();
    let total: f64 = roots.iter().sum();
    let expected: Vec<f64> = roots.iter().map(|r| r / total).collect();
    assert!(chi_square(&counts(&Sampling { temperature: 2.0, ..warm() }, &logits, 40_000), &expected) < 29.9);
}

#[test]
fn the_filters_keep_what_they_say() {
    let p = [0.05, 0.4, 0.1, 0.25, 0.2];
    let logits = logits_of(&p);
    let renormalized = |kept: &[usize]| {
        let total: f64 = kept.iter().map(|&i| p[i]).sum();
        (0..p.len()).map(|i| if kept.contains(&i) { p[i] / total } else { 0.0 }).collect::<Vec<_>>()
    };
    for (sampling, kept) in [
        (Sampling { top_k: 2, ..warm() }, &[1, 3][..]),
        (Sampling { top_k: 99, ..warm() }, &[0, 1, 2, 3, 4]),
        // 0.4 + 0.25 is less than 0.66: the token that reaches it is kept.
        (Sampling { top_p: 0.66, ..warm() }, &[1, 3, 4]),
        (Sampling { top_p: 0.3, ..warm() }, &[1]),
        (Sampling { min_p: 0.3, ..warm() }, &[1, 3, 4]),
        // Among the three of top-k, 0.4 / 0.85 and 0.25 / 0.85 reach 0.75; of all they would not.
        (Sampling { top_k: 3, top_p: 0.75, ..warm() }, &[1, 3]),
        (Sampling { top_k: 4, top_p: 0.99, min_p: 0.45, ..warm() }, &[1, 3, 4]),
    ] {
        let statistic = chi_square(&counts(&sampling, &logits, 20_000), &renormalized(kept));
        // Four degrees of freedom: once in ten thousand.
        assert!(statistic < 23.5, "{sampling:?}: {statistic}");
    }
}

#[test]
fn ties_go_to_the_lower_token() {
    let logits = [1.0, 3.0, 2.0, 3.0, 3.0];
    assert_eq!(choose(&Sampling::default(), &logits, &[0], &[]), 1);
    for seed in 0..200 {
        assert_eq!(choose(&Sampling { top_k: 1, seed, ..warm() }, &logits, &[0], &[]), 1);
        assert!([1, 3].contains(&choose(&Sampling { top_k: 2, seed, ..warm() }, &logits, &[0], &[])));
        assert_eq!(choose(&Sampling { top_p: 0.1, seed, ..warm() }, &logits, &[0], &[]), 1);
    }
}

#[test]
fn penalties_count_what_they_say() {
    let greedy = Sampling::default();
    // Repetition: positive logits are divided, negative multiplied, in prompt and output alike, once.
    let repeat = Sampling { repeat_penalty: 2.0, ..greedy };
    assert_eq!(choose(&repeat, &[3.0, 2.0, 1.0], &[0, 0], &[]), 1, "3 / 2 < 2");
    assert_eq!(
        choose(&repeat, &[3.0, 1.4, 1.0], &[0, 0, 0], &[0]),
        0,
        "3 / 2 > 1.4 however often it is there"
    );
    assert_eq!(choose(&repeat, &[-1.0, -1.5], &[1], &[0]), 0, "-2 > -3");
    assert_eq!(choose(&repeat, &[-1.0, -1.5], &[], &[0]), 1, "-2 < -1.5");
    // Presence and frequency look at the output alone.
    let presence = Sampling { presence_penalty: 1.5, ..greedy };
    assert_eq!(choose(&presence, &[3.0, 2.0], &[0, 0], &[]), 0);
    assert_eq!(choose(&presence, &[3.0, 2.0], &[], &[0]), 1);
    assert_eq!(choose(&presence, &[3.0, 1.4], &[], &[0, 0, 0]), 0, "once, however often it is there");
    let frequency = Sampling { frequency_penalty: 0.4, ..greedy };
    assert_eq!(choose(&frequency, &[3.0, 2.0], &[0], &[0, 0]), 0, "3 - 0.8 > 2");
    assert_eq!(choose(&frequency, &[3.0, 2.0], &[], &[0, 0, 0]), 1, "3 - 1.2 < 2");
    // One sampler forgets between calls.
    let mut sampler = Sampler::default();
    let all = Sampling { repeat_penalty: 1.5, frequency_penalty: 0.7, presence_penalty: 0.1, ..greedy };
    let first = sampler.sample(&all, &[3.0, 2.0, 1.9], &[2], &[0, 0, 1]).expect("numbers");
    for _ in 0..3 {
        assert_eq!(sampler.sample(&all, &[3.0, 2.0, 1.9], &[2], &[0, 0, 1]).expect("numbers"), first);
    }
    // A history with tokens that have no logit is not an error.
    assert_eq!(choose(&all, &[1.0, 0.0], &[7], &[9]), 0);
}

/// The greatest is looked for in blocks.
#[test]
fn the_greatest_is_found_wherever_it_is() {
    for at in [0, 1, 63, 64, 65, 127, 128, 199] {
        let mut logits: Vec<f32> = (0..200).map(|i| -1.0 - (i % 7) as f32).collect();
        logits[at] = -0.5;
        assert_eq!(choose(&Sampling::default(), &logits, &[0], &[]), at as u32);
        logits[199] = -0.5;
        assert_eq!(choose(&Sampling::default(), &logits, &[0], &[]), at as u32, "the lowest of equals");
        logits[150] = f32::NAN;
        let outcome = Sampler::default().sample(&Sampling::default(), &logits, &[0], &[]);
        assert!(matches!(outcome, Err(EngineError::NotNumbers { position: 1 })), "{at}");
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    for bad in [[1.0, f32::NAN, 0.0], [1.0, f32::INFINITY, 0.0], [f32::NEG_INFINITY; 3]] {
        for sampling in [Sampling::default(), warm(), Sampling { repeat_penalty: 2.0, ..warm() }] {
            let outcome = Sampler::default().sample(&sampling, &bad, &[0, 1], &[0]);
            assert!(matches!(outcome, Err(EngineError::NotNumbers { position: 3 })), "{bad:?}");
        }
    }
    // A token that is ruled out is no error and is never drawn.
    let masked = [0.0, f32::NEG_INFINITY, 0.0];
    assert_eq!(counts(&warm(), &masked, 500)[1], 0.0);
    // A vanishing temperature is greedy, a huge one is even.
    let logits = [1.0, 2.0, 1.5];
    let counted = counts(&Sampling { temperature: f32::MIN_POSITIVE, ..warm() }, &logits, 50);
    assert_eq!(counted, [0.0, 50.0, 0.0]);
    let even = counts(&Sampling { temperature: f32::MAX, ..warm() }, &logits, 9_000);
    assert!(chi_square(&even, &[1.0 / 3.0; 3]) < 18.4, "{even:?}");
}

#[test]
fn random_numbers_depend_on_seed_and_position_alone() {
    assert_eq!(uniform(3, 4), uniform(3, 4));
    // A hundred bins of 1000 each, for one seed over positions and for one position over seeds.
    for by_seed in [false, true] {
        let mut bins = vec![0.0; 100];
        for i in 0..100_000 {
            let u = if by_seed { uniform(i, 17) } else { uniform(17, i) };
            assert!((0.0..1.0).contains(&u));
            bins[(u * 100.0) as usize] += 1.0;
        }
        let statistic = chi_square(&bins, &[0.01; 100]);
        assert!((50.0..160.0).contains(&statistic), "99 degrees of freedom: {statistic}");
    }
    // Neighbours, in either, have nothing to do with one another.
    let n = 50_000;
    for step in [(0, 1), (1, 0), (1, 1)] {
        let product = |i: u64| (uniform(i, i) - 0.5) * (uniform(i + step.0, i + step.1) - 0.5);
        let correlation = 12.0 * (0..n).map(product).sum::<f64>() / n as f64;
        assert!(correlation.abs() < 4.0 / (n as f64).sqrt(), "{step:?}: {correlation}");
    }
}

/// The same choice, made the slow way: everything is sorted.
fn slowly(sampling: &Sampling, logits: &[f32], position: u64) -> u32 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |l: f32| ((f64::from(l) - max) / f64::from(sampling.temperature)).exp();
    let mut all: Vec<(f64, usize)> = logits.iter().enumerate().map(|(i, &l)| (weight(l), i)).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    all.truncate(sampling.top_k);
    let total: f64 = all.iter().map(|c| c.0).sum();
    let mut sum = 0.0;
    let mut kept = 0;
    while kept < all.len() && sum < f64::from(sampling.top_p) * total {
        sum += all[kept].0;
        kept += 1;
    }
    all.truncate(kept);
    all.retain(|c| c.0 >= f64::from(sampling.min_p));
    let target = uniform(sampling.seed, position) * all.iter().map(|c| c.0).sum::<f64>();
    let mut sum = 0.0;
    for &(weight, token) in &all {
        sum += weight;
        if sum > target {
            return token as u32;
        }
    }
    all[all.len() - 1].1 as u32
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn partial_sorting_chooses_as_full_sorting_does(
        logits in vec(prop_oneof![-3.0f32..3.0, Just(0.5f32)], 100..1200),
        share in 0.01f64..1.0,
        top_p in 0.05f32..0.99,
        min_p in 0.0f32..0.5,
        seed in any::<u64>(),
    ) {
        let top_k = ((logits.len() as f64 * share) as usize).clamp(1, logits.len() - 1);
        let sampling = Sampling { temperature: 0.9, top_k, top_p, min_p, seed, ..Sampling::default() };
        prop_assert_eq!(choose(&sampling, &logits, &[0; 6], &[0; 3]), slowly(&sampling, &logits, 9));
    }
}
