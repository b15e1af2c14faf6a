//! How fast this machine reads memory and multiplies floats, measured when a bench begins.

use std::hint::black_box;
use std::thread;
use std::time::Instant;

use super::Work;

/// More than most last caches hold.
const BYTES: usize = 512 << 20;
/// Multiplications and additions of a turn: a whole number of rounds of every vector width.
const OPERATIONS: usize = 2 * 16 * 12 * 2;

pub struct Machine {
    pub threads: usize,
    /// Bytes per second that all threads read together.
    read: f64,
    /// Multiplications and additions of f32 per second that all threads make together.
    float: f64,
}

impl Machine {
    pub fn measure() -> Machine {
        let threads = thread::available_parallelism().map_or(1, |n| n.get());
        let words: Vec<u64> = (0..BYTES as u64 / 8).collect();
        let part = words.len().div_ceil(threads);
        let read = best(BYTES as f64, || {
            thread::scope(|scope| {
                words.chunks(part).for_each(|part| {
                    scope.spawn(|| black_box(sum(part)));
                });
            });
        });
        const TURNS: usize = 4_000_000;
        let float = best((OPERATIONS * TURNS * threads) as f64, || {
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| black_box(chains(black_box(TURNS))));
                }
            });
        });
        println!(
            "{threads} threads; memory is read at {:.1} GB/s, f32 computed at {:.0} GFLOP/s",
            read / 1e9,
            float / 1e9
        );
        Machine { threads, read, float }
    }

    /// What a time for that work is of the limits.
    pub fn shares(&self, work: Work, seconds: f64) -> String {
        let part = |speed: f64, limit: f64| 100.0 * speed / limit;
        let (bytes, operations) = (work.bytes / seconds, work.operations / seconds);
        format!(
            "{:.2} GB/s, {:.0} % of the memory's; {:.1} GFLOP/s, {:.0} % of what f32 units do",
            bytes / 1e9,
            part(bytes, self.read),
            operations / 1e9,
            part(operations, self.float),
        )
    }
}

/// The best speed of several rounds of so much work.
fn best(work: f64, mut round: impl FnMut()) -> f64 {
    let time = |_| {
        let begin = Instant::now();
        round();
        begin.elapsed().as_secs_f64()
    };
    work / (0..5).map(time).fold(f64::INFINITY, f64::min)
}

fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in words.as_chunks::<32>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Multiplies and adds in the widest vectors that there are. The result keeps it from being left out.
fn chains(turns: usize) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has it.
            return unsafe { x86::chains_avx512(turns) };
        }
        if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has both.
            return unsafe { x86::chains_avx2(turns) };
        }
    }
    let (factor, term) = (black_box(0.999f32), black_box(0.001f32));
    let mut sums = [[0.0f32; 4]; 8];
    for _ in 0..turns * OPERATIONS / 64 {
        for sum in sums.as_flattened_mut() {
            *sum = *sum * factor + term;
        }
    }
    sums.as_flattened().iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::OPERATIONS;

    const CHAINS: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub fn chains_avx512(turns: usize) -> f32 {
        let (factor, term) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_set1_ps(black_box(i as f32));
        }
        for _ in 0..turns * OPERATIONS / (2 * 16 * CHAINS) {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        let mut all = _mm512_setzero_ps();
        for sum in sums {
            all = _mm512_add_ps(all, sum);
        }
        _mm512_reduce_add_ps(all)
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn chains_avx2(turns: usize) -> f32 {
        let (factor, term) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_set1_ps(black_box(i as f32));
        }
        for _ in 0..turns * OPERATIONS / (2 * 8 * CHAINS) {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        let mut all = _mm256_setzero_ps();
        for sum in sums {
            all = _mm256_add_ps(all, sum);
        }
        _mm256_cvtss_f32(all)
    }
}
