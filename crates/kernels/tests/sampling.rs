//! Choosing tokens: the order of the filters, the distribution, the penalties, ties and values that are no
//! numbers.

mod choosing;

use choosing::{chi_square, row, warm};
use exotherm_kernels::sampling::reference::sample;
use exotherm_kernels::sampling::uniform;
use exotherm_kernels::{SampleRow, Sampling};
use proptest::collection::vec;
use proptest::prelude::*;

fn choose(sampling: &Sampling, logits: &[f32], prompt: &[u32], output: &[u32]) -> u32 {
    sample(logits, &row(sampling, prompt, output)).token.expect("the logits are numbers")
}

/// How often each token is drawn with the seeds `0..n`.
fn counts(sampling: &Sampling, logits: &[f32], n: u64) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for seed in 0..n {
        counts[choose(&Sampling { seed, ..sampling.clone() }, logits, &[0], &[]) as usize] += 1.0;
    }
    counts
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
    let sampling = Sampling { seed: 5, ..warm() };
    for position in 0..20_000 {
        let row = SampleRow { position, ..row(&sampling, &[0], &[]) };
        by_position[sample(&logits, &row).token.expect("numbers") as usize] += 1.0;
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
    let greedy = Sampling::default;
    // Repetition: positive logits are divided, negative multiplied, in prompt and output alike, once.
    let repeat = Sampling { repeat_penalty: 2.0, ..greedy() };
    assert_eq!(choose(&repeat, &[3.0, 2.0, 1.0], &[0, 0], &[]), 1, "3 / 2 < 2");
    assert_eq!(
        choose(&repeat, &[3.0, 1.4, 1.0], &[0, 0, 0], &[0]),
        0,
        "3 / 2 > 1.4 however often it is there"
    );
    assert_eq!(choose(&repeat, &[-1.0, -1.5], &[1], &[0]), 0, "-2 > -3");
    assert_eq!(choose(&repeat, &[-1.0, -1.5], &[], &[0]), 1, "-2 < -1.5");
    // Presence and frequency look at the output alone.
    let presence = Sampling { presence_penalty: 1.5, ..greedy() };
    assert_eq!(choose(&presence, &[3.0, 2.0], &[0, 0], &[]), 0);
    assert_eq!(choose(&presence, &[3.0, 2.0], &[], &[0]), 1);
    assert_eq!(choose(&presence, &[3.0, 1.4], &[], &[0, 0, 0]), 0, "once, however often it is there");
    let frequency = Sampling { frequency_penalty: 0.4, ..greedy() };
    assert_eq!(choose(&frequency, &[3.0, 2.0], &[0], &[0, 0]), 0, "3 - 0.8 > 2");
    assert_eq!(choose(&frequency, &[3.0, 2.0], &[], &[0, 0, 0]), 1, "3 - 1.2 < 2");
    let all = Sampling { repeat_penalty: 1.5, frequency_penalty: 0.7, presence_penalty: 0.1, ..greedy() };
    // A history with tokens that have no logit is not an error.
    assert_eq!(choose(&all, &[1.0, 0.0], &[7], &[9]), 0);
}

#[test]
fn the_greatest_is_found_wherever_it_is() {
    for at in [0, 1, 63, 64, 65, 127, 128, 199] {
        let mut logits: Vec<f32> = (0..200).map(|i| -1.0 - (i % 7) as f32).collect();
        logits[at] = -0.5;
        assert_eq!(choose(&Sampling::default(), &logits, &[0], &[]), at as u32);
        logits[199] = -0.5;
        assert_eq!(choose(&Sampling::default(), &logits, &[0], &[]), at as u32, "the lowest of equals");
        logits[150] = f32::NAN;
        assert_eq!(sample(&logits, &row(&Sampling::default(), &[0], &[])).token, None, "{at}");
    }
}

#[test]
fn logits_that_are_no_numbers_give_no_token() {
    for bad in [[1.0, f32::NAN, 0.0], [1.0, f32::INFINITY, 0.0], [f32::NEG_INFINITY; 3]] {
        for sampling in [Sampling::default(), warm(), Sampling { repeat_penalty: 2.0, ..warm() }] {
            let row = SampleRow { logprobs: Some(2), ..row(&sampling, &[0, 1], &[0]) };
            let sampled = sample(&bad, &row);
            assert!(sampled.token.is_none() && sampled.logprobs.is_none(), "{bad:?}");
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
fn bias_comes_before_everything_else() {
    let greedy = Sampling::default;
    let bias = |logit_bias: &[(u32, f32)]| Sampling { logit_bias: logit_bias.to_vec(), ..greedy() };
    let logits = [3.0, 2.0, -4.0];
    assert_eq!(choose(&bias(&[(1, 1.5)]), &logits, &[0], &[]), 1);
    assert_eq!(choose(&bias(&[(0, -100.0), (1, -100.0)]), &logits, &[0], &[]), 2, "two are banned");
    assert_eq!(choose(&bias(&[(2, 6.0)]), &logits, &[0], &[]), 0, "2 < 3");
    assert_eq!(choose(&bias(&[(2, 6.0), (2, 6.0)]), &logits, &[0], &[]), 2, "8 > 3");
    assert_eq!(choose(&bias(&[(7, 100.0)]), &logits, &[0], &[]), 0, "no such token");
    // What is repeated is penalized with its bias: (3 + 5) / 4 = 2 is not more than 2.5.
    let both = Sampling { repeat_penalty: 4.0, ..bias(&[(0, 5.0)]) };
    assert_eq!(choose(&both, &[3.0, 2.5], &[0], &[]), 1);
    // What is impossible stays so, and no bias makes a number of what is none.
    assert_eq!(choose(&bias(&[(0, 100.0)]), &[f32::NEG_INFINITY, -50.0], &[1], &[]), 1);
    let huge = Sampling { presence_penalty: f32::MIN, ..bias(&[(1, 100.0)]) };
    assert_eq!(choose(&huge, &[f32::MAX, f32::MAX], &[], &[1, 1]), 0, "both are the greatest float");
    let nan = sample(&[f32::INFINITY, 1.0], &row(&bias(&[(0, -100.0)]), &[1], &[]));
    assert_eq!(nan.token, None);
}

/// The logarithm of a token's probability, with nothing in common with the code that is tested.
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let own = f64::from(logits[token as usize]);
    -logits.iter().map(|&l| (f64::from(l) - own).exp()).sum::<f64>().ln()
}

#[test]
fn logprobs_are_the_models_own() {
    let logits = [1.0, -2.0, 3.5, 3.5, f32::NEG_INFINITY, 0.25];
    for sampling in [
        Sampling::default(),
        warm(),
        Sampling { temperature: 0.3, top_k: 2, top_p: 0.5, min_p: 0.1, ..Sampling::default() },
        Sampling { repeat_penalty: 1.7, frequency_penalty: 1.0, logit_bias: vec![(5, 9.0)], ..warm() },
    ] {
        for n in [0, 1, 3, 20] {
            let sampled = sample(&logits, &SampleRow { logprobs: Some(n), ..row(&sampling, &[0, 2], &[2]) });
            let (token, logprobs) = (sampled.token.expect("numbers"), sampled.logprobs.expect("asked for"));
            assert!((f64::from(logprobs.logprob) - log_probability(&logits, token)).abs() < 1e-6);
            let tokens: Vec<u32> = logprobs.top().iter().map(|t| t.token).collect();
            assert_eq!(tokens, [2, 3, 0, 5, 1][..5.min(n as usize)], "likelier first, of equals the lower");
            for top in logprobs.top() {
                assert!((f64::from(top.logprob) - log_probability(&logits, top.token)).abs() < 1e-6);
            }
        }
        assert_eq!(sample(&logits, &row(&sampling, &[0], &[])).logprobs, None);
    }
}

#[test]
fn a_token_that_is_given_is_told_as_it_is() {
    let logits = [1.0, -2.0, 3.5, f32::NEG_INFINITY, 0.25];
    let all = Sampling { repeat_penalty: 1.7, logit_bias: vec![(4, 9.0)], top_k: 1, vocab: 4, ..warm() };
    let told = |logits: &[f32], given| {
        sample(logits, &SampleRow { given: Some(given), logprobs: Some(2), ..row(&all, &[0, 2], &[2]) })
    };
    for given in 0..3 {
        let (sampled, own) = (told(&logits, given), log_probability(&logits[..4], given));
        let logprobs = sampled.logprobs.expect("asked for");
        assert_eq!(sampled.token, Some(given), "nothing is chosen");
        assert!((f64::from(logprobs.logprob) - own).abs() < 1e-6, "neither bias nor penalties count");
        assert_eq!(logprobs.top().iter().map(|t| t.token).collect::<Vec<_>>(), [2, 0]);
    }
    // What is impossible, what is outside the vocabulary, and what has no logit at all.
    for given in [3, 4, 99] {
        let sampled = told(&logits, given);
        assert_eq!((sampled.token, sampled.logprobs.map(|l| l.logprob)), (Some(given), Some(f32::MIN)));
    }
    assert_eq!(told(&[1.0, f32::NAN, 2.0, 3.0], 0).token, None, "what is no number is told of no token");
}

#[test]
fn values_that_mean_nothing_are_refused_by_name() {
    for (name, sampling) in [
        ("temperature", Sampling { temperature: -0.5, ..warm() }),
        ("top_p", Sampling { top_p: f32::NAN, ..warm() }),
        ("min_p", Sampling { min_p: 1.5, ..warm() }),
        ("repeat_penalty", Sampling { repeat_penalty: -1.0, ..warm() }),
        ("presence_penalty", Sampling { presence_penalty: f32::NAN, ..warm() }),
        ("frequency_penalty", Sampling { frequency_penalty: f32::INFINITY, ..warm() }),
        ("logit_bias is -100.5", Sampling { logit_bias: vec![(0, 100.0), (1, -100.5)], ..warm() }),
        ("logit_bias is NaN", Sampling { logit_bias: vec![(0, f32::NAN)], ..warm() }),
    ] {
        let why = sampling.check().expect_err("it means nothing").to_string();
        assert!(why.starts_with(name), "{name}: {why}");
    }
    let biased = Sampling { logit_bias: vec![(3, -100.0), (9, 100.0)], ..warm() };
    assert!(biased.check().is_ok() && biased.check_tokens(10).is_ok());
    let why = biased.check_tokens(9).expect_err("there is no token 9").to_string();
    assert!(why.contains("logit_bias") && why.contains("token 9"), "{why}");
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

/// The same choice, in floats.
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
    all.sort_by_key(|c| c.1);
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
    fn whole_numbers_choose_as_floats_do(
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
