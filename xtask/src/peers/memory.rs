//! How fast this machine reads its memory, by nothing but reading it.

use std::hint::black_box;
use std::thread;
use std::time::Instant;

/// More than the last cache of any machine that this is likely to run on.
const BYTES: usize = 1 << 30;

/// A buffer that is read over and over, a part by each thread.
pub struct Memory {
    words: Vec<u64>,
    threads: usize,
}

impl Memory {
    pub fn new(threads: usize) -> Memory {
        // Not zeros: pages that were never written all read as one.
        Memory { words: (0..BYTES as u64 / 8).collect(), threads }
    }

    /// Bytes per second, the best of three readings.
    pub fn read_speed(&self) -> f64 {
        (0..3).map(|_| self.read_once()).fold(0.0, f64::max)
    }

    fn read_once(&self) -> f64 {
        let begin = Instant::now();
        thread::scope(|scope| {
            for part in self.words.chunks(self.words.len().div_ceil(self.threads)) {
                scope.spawn(|| black_box(sum(part)));
            }
        });
        8.0 * self.words.len() as f64 / begin.elapsed().as_secs_f64()
    }
}

/// Independent sums, so that reading is all there is to wait for.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in words.as_chunks::<32>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}
