//! The CPU backend chooses the tokens that the reference chooses, at every level and on any number of threads, whatever is
//! chosen beside them; and it draws them as often as they are likely. So does the GPU.

mod choosing;
#[path = "gpu_at_hand/mod.rs"]
mod gpu_at_hand;

use choosing::{Chooser, chi_square, row, warm};
use exotherm_kernels::conformance::data::Numbers;
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::sampling::MAX_LOGPROBS;
use exotherm_kernels::{Backend, BackendError, SampleRow, Sampled, Sampling};

/// Rows of logits of a step.
const ROWS: usize = 3;

/// One token to be chosen, and from what.
struct Wish {
    logits: usize,
    sampling: Sampling,
    prompt: Vec<u32>,
    output: Vec<u32>,
    logprobs: Option<u8>,
    given: Option<u32>,
}

impl Wish {
    fn row(&self) -> SampleRow<'_> {
        let row = row(&self.sampling, &self.prompt, &self.output);
        SampleRow { logits: self.logits, logprobs: self.logprobs, given: self.given, ..row }
    }
}

fn between(numbers: &mut Numbers, low: f32, high: f32) -> f32 {
    low + (high - low) * numbers.below(1 << 20) as f32 / (1 << 20) as f32
}

fn pick<T: Copy>(numbers: &mut Numbers, of: &[T]) -> T {
    of[numbers.below(of.len())]
}

/// Rows of many kinds: peaked, even, tied, mostly impossible, extreme, and now and then no numbers at all.
fn logits(numbers: &mut Numbers, n: usize) -> Vec<f32> {
    let kind = numbers.below(10);
    let mut row: Vec<f32> = (0..n)
        .map(|_| match kind {
            0 => 0.5,
            1 => numbers.below(4) as f32 - 1.0,
            2 => between(numbers, -1e4, 1e4),
            3 => pick(numbers, &[f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, 2.0, 1.0]),
            4 => pick(numbers, &[f32::MIN, f32::MAX, 0.0, -0.0, f32::NEG_INFINITY, 1e-40, -1e4, 1e4]),
            5 => between(numbers, -3.0, 3.0),
            _ => (0..4).map(|_| between(numbers, -6.0, 6.0)).sum(),
        })
        .collect();
    match numbers.below(12) {
        0 => row.sort_by(f32::total_cmp),
        1 => row.fill(pick(numbers, &[f32::NEG_INFINITY, f32::MIN, f32::MAX, -0.0])),
        2 => row[numbers.below(n)] = pick(numbers, &[f32::NAN, f32::INFINITY, -f32::NAN]),
        3 => {
            row.fill(f32::NEG_INFINITY);
            row[numbers.below(n)] = pick(numbers, &[f32::MIN, -7.0, 0.0]);
        }
        _ => {}
    }
    row
}

fn tokens(numbers: &mut Numbers, n: usize) -> Vec<u32> {
    (0..numbers.below(30)).map(|_| numbers.below(n + n / 8 + 1) as u32).collect()
}

fn sampling(numbers: &mut Numbers, n: usize) -> Sampling {
    let some = |numbers: &mut Numbers, low, high, off| match numbers.below(2) {
        0 => off,
        _ => between(numbers, low, high),
    };
    let temperature = match numbers.below(4) {
        0 => pick(numbers, &[0.0, 1e-45, f32::MIN_POSITIVE, 1e6, f32::MAX]),
        1 => 1.0,
        _ => between(numbers, 0.1, 2.0),
    };
    let biased = if numbers.below(3) == 0 { 1 + numbers.below(6) } else { 0 };
    let bias = |_| (numbers.below(n) as u32, between(numbers, -100.0, 100.0));
    let logit_bias = (0..biased).map(bias).collect();
    let any_top_k = [1, 2, 40, 1 + numbers.below(n), n, n + 5];
    Sampling {
        temperature,
        top_k: if numbers.below(2) == 0 { 0 } else { pick(numbers, &any_top_k) },
        top_p: some(numbers, 0.001, 1.0, 1.0),
        min_p: some(numbers, 0.0, 1.0, 0.0) * pick(numbers, &[1.0, 0.1, 1e-4]),
        repeat_penalty: some(numbers, 0.5, 2.0, 1.0),
        presence_penalty: some(numbers, -2.0, 2.0, 0.0),
        frequency_penalty: some(numbers, -2.0, 2.0, 0.0),
        logit_bias,
        seed: numbers.below(1 << 30) as u64,
        vocab: pick(numbers, &[usize::MAX, usize::MAX, n + 1, 1 + n / 2, n.div_ceil(3)]),
    }
}

fn wish(numbers: &mut Numbers, n: usize) -> Wish {
    let sampling = match (sampling(numbers, n), numbers.below(5)) {
        (Sampling { vocab, .. }, 0) => Sampling { vocab, ..Sampling::default() },
        (any, _) => any,
    };
    sampling.check().expect("only what means something is drawn");
    Wish {
        logits: numbers.below(ROWS),
        sampling,
        prompt: tokens(numbers, n),
        output: tokens(numbers, n),
        logprobs: (numbers.below(3) == 0).then(|| numbers.below(MAX_LOGPROBS + 1) as u8),
        // There may be no logit of it.
        given: (numbers.below(4) == 0).then(|| numbers.below(n + 2) as u32),
    }
}

/// The same token; log-probabilities to what floats can tell.
fn agree(have: &Sampled, want: &Sampled) -> bool {
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
    let logprobs = match (have.logprobs, want.logprobs) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            close(a.logprob, b.logprob)
                && a.top().len() == b.top().len()
                && a.top().iter().zip(b.top()).all(|(a, b)| a.token == b.token && close(a.logprob, b.logprob))
        }
        _ => false,
    };
    have.token == want.token && logprobs
}

/// Draws steps over vocabularies of `n` and holds the backends to the reference and, bit for bit, to one another.
fn hold(backends: &[CpuBackend], n: usize, steps: u64) {
    let named = |b: &CpuBackend| format!("{}, {} threads", b.level(), b.threads());
    let backends: Vec<_> = backends.iter().map(|b| (named(b), b as &dyn Backend)).collect();
    hold_all(&backends, n, steps);
}

fn hold_all(backends: &[(String, &dyn Backend)], n: usize, steps: u64) {
    let mut reference = Chooser::new(&ReferenceBackend, n, ROWS);
    let mut choosers: Vec<Chooser> = backends.iter().map(|(_, b)| Chooser::new(*b, n, ROWS)).collect();
    for step in 0..steps {
        let mut numbers = Numbers::new(step ^ (n as u64) << 20);
        let shown: Vec<Vec<f32>> = (0..ROWS).map(|_| logits(&mut numbers, n)).collect();
        let wishes: Vec<Wish> = (0..1 + numbers.below(7)).map(|_| wish(&mut numbers, n)).collect();
        let rows: Vec<SampleRow> = wishes.iter().map(Wish::row).collect();
        reference.show(&shown);
        let want = reference.choose(&rows).to_vec();
        let mut first: Option<Vec<Sampled>> = None;
        for (chooser, (on, _)) in choosers.iter_mut().zip(backends) {
            chooser.show(&shown);
            let have = chooser.choose(&rows).to_vec();
            for (i, (have, want)) in have.iter().zip(&want).enumerate() {
                assert!(
                    agree(have, want),
                    "{n} tokens, step {step}, row {i}, {on}: {have:?}, not {want:?}\n{:?}",
                    rows[i]
                );
            }
            assert_eq!(*first.get_or_insert_with(|| have.clone()), have, "{n} tokens, step {step}");
            // Alone, a row is shared out among the lanes.
            let alone = numbers.below(rows.len());
            assert_eq!(chooser.choose(&rows[alone..=alone])[0], have[alone], "{n} tokens, step {step}");
        }
    }
}

#[test]
fn tokens_are_those_of_the_reference() {
    let backends = [1, 2, 3].map(CpuBackend::new);
    for n in [1, 2, 15, 16, 17, 127, 128, 129, 400, 1000] {
        hold(&backends, n, 200);
    }
    hold(&backends, 5000, 60);
    // From here on a row that must be weighed is shared out among the lanes.
    hold(&backends, 16_000, 60);
    hold(&backends, 49_152, 12);
    hold(&backends, 151_936, 6);
}

#[test]
fn every_level_chooses_the_same() {
    let levels: Vec<CpuBackend> =
        CpuBackend::levels().map(|level| CpuBackend::with_level(2, level).expect("it is there")).collect();
    for (n, steps) in [(16, 30), (129, 60), (1000, 60), (16_000, 20)] {
        hold(&levels, n, steps);
    }
}

#[test]
fn the_gpu_chooses_the_same() {
    if let Some(gpu) = gpu_at_hand::gpu() {
        let gpu: [(String, &dyn Backend); 1] = [("GPU".into(), gpu)];
        for (n, steps) in
            [(1, 20), (17, 40), (256, 60), (1000, 100), (5000, 40), (16_000, 30), (49_152, 15), (151_936, 3)]
        {
            hold_all(&gpu, n, steps);
        }
    }
}

#[test]
fn one_seed_gives_one_token_alone_and_among_sixteen() {
    let n = 16_000;
    let mut chooser = Chooser::new(&CpuBackend::new(2), n, ROWS);
    let mut numbers = Numbers::new(3);
    let shown: Vec<Vec<f32>> =
        (0..ROWS).map(|_| (0..n).map(|_| between(&mut numbers, -4.0, 4.0)).collect()).collect();
    chooser.show(&shown);
    for start in 0..20 {
        let wishes: Vec<Wish> = (0..16).map(|_| wish(&mut numbers, n)).collect();
        let rows: Vec<SampleRow> =
            wishes.iter().map(|w| SampleRow { position: start * 1000, ..w.row() }).collect();
        let together = chooser.choose(&rows).to_vec();
        for (row, sampled) in rows.iter().zip(&together) {
            assert_eq!(chooser.choose(&[*row])[0], *sampled);
        }
        // Many draws of one row: nothing but the position differs.
        let draws: Vec<SampleRow> = (0..16).map(|i| SampleRow { position: i, ..rows[0] }).collect();
        let together: Vec<Sampled> = chooser.choose(&draws).to_vec();
        for (row, sampled) in draws.iter().zip(&together) {
            assert_eq!(chooser.choose(&[*row])[0], *sampled);
        }
    }
}

/// What the filters leave of these logits, as probabilities, in floats.
fn exact(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |l: f32| ((f64::from(l) - max) / f64::from(sampling.temperature)).exp();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let total: f64 = order.iter().map(|&t| weight(logits[t])).sum();
    let mut sum = 0.0;
    order.retain(|&t| {
        let is_needed = sampling.top_p == 1.0 || sum < f64::from(sampling.top_p) * total;
        sum += weight(logits[t]);
        is_needed
    });
    order.retain(|&t| weight(logits[t]) >= f64::from(sampling.min_p));
    let total: f64 = order.iter().map(|&t| weight(logits[t])).sum();
    let mut probabilities = vec![0.0; logits.len()];
    order.iter().for_each(|&t| probabilities[t] = weight(logits[t]) / total);
    probabilities
}

/// Statistic and degrees of freedom, tokens gathered in bins that are expected 20 times or more.
fn binned(counts: &[f64], probabilities: &[f64]) -> (f64, usize) {
    let n: f64 = counts.iter().sum();
    let (mut bins, mut bin) = (Vec::new(), (0.0, 0.0));
    for (&count, &p) in counts.iter().zip(probabilities) {
        assert!(p > 0.0 || count == 0.0, "a token that was filtered out was drawn");
        bin = (bin.0 + count, bin.1 + p);
        if bin.1 * n >= 20.0 {
            bins.push(std::mem::take(&mut bin));
        }
    }
    let last = bins.last_mut().expect("there are enough draws for a bin");
    *last = (last.0 + bin.0, last.1 + bin.1);
    let (counts, probabilities): (Vec<f64>, Vec<f64>) = bins.into_iter().unzip();
    (chi_square(&counts, &probabilities), counts.len() - 1)
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    for (n, draws) in [(40, 20_000), (700, 20_000), (16_000, 6000)] {
        let mut numbers = Numbers::new(n);
        let n = n as usize;
        let logits: Vec<f32> =
            (0..n).map(|_| (0..3).map(|_| between(&mut numbers, -3.0, 3.0)).sum()).collect();
        let mut chooser = Chooser::new(&CpuBackend::new(2), n, 1);
        chooser.show(std::slice::from_ref(&logits));
        for sampling in [
            warm(),
            Sampling { temperature: 0.6, ..warm() },
            Sampling { temperature: 3.0, min_p: 0.2, ..warm() },
            Sampling { top_k: 12, ..warm() },
            Sampling { top_p: 0.7, ..warm() },
            Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..warm() },
        ] {
            let mut counts = vec![0.0; n];
            for first in (0..draws).step_by(25) {
                let rows: Vec<SampleRow> = (first..first + 25)
                    .map(|position| SampleRow { position, ..row(&sampling, &[], &[]) })
                    .collect();
                let chosen = chooser.choose(&rows).iter().map(|sampled| sampled.token.expect("numbers"));
                chosen.for_each(|token| counts[token as usize] += 1.0);
            }
            let (statistic, degrees) = binned(&counts, &exact(&logits, &sampling));
            // Wilson and Hilferty's approximation, at which a fair draw arrives about once in ten thousand.
            let spread = 2.0 / (9.0 * degrees as f64);
            let bound = degrees as f64 * (1.0 - spread + 3.72 * spread.sqrt()).powi(3);
            assert!(statistic < bound, "{n} tokens, {sampling:?}: {statistic} of {degrees} degrees");
        }
    }
}

#[test]
fn rows_that_there_are_not_are_refused() {
    let sampling = Sampling::default();
    let backends: [&dyn Backend; 2] = [&ReferenceBackend, &CpuBackend::new(2)];
    for backend in backends {
        let mut chooser = Chooser::new(backend, 5, 2);
        chooser.show(&[vec![0.0, 1.0, 0.0, 0.0, 0.0]]);
        let past = SampleRow { logits: 1, ..row(&sampling, &[0], &[]) };
        let outcome = chooser.executor.sample(&[row(&sampling, &[0], &[]), past], &mut Vec::new());
        assert!(matches!(outcome, Err(BackendError::LogitRow { row: 1, rows: 1 })), "{outcome:?}");
        assert_eq!(chooser.choose(&[]), []);
        assert_eq!(chooser.choose(&[row(&sampling, &[0], &[])])[0].token, Some(1));
    }
}
