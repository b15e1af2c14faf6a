//! What this machine can do at most: how fast its memory is read and its units multiply.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::CpuBackend;
use super::memory::Shared;
use super::pack::share;
use super::simd::{BYTES, ByteIsa, ByteKernel, Isa, Kernel, Level, WIDTH};
use super::team::Team;
use crate::backend::BackendError;

/// Of several rounds, per second: bytes, or operations.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Speed {
    pub best: f64,
    pub median: f64,
}

/// Bytes that one round reads: long against the start of a round, short against the moods of a shared machine.
const ROUND_BYTES: usize = 64 << 20;
/// Rounds of arithmetic take about so long.
const ROUND: Duration = Duration::from_millis(5);
/// Fewer rounds than these tell nothing.
const LEAST_ROUNDS: usize = 3;

impl CpuBackend {
    /// How fast all threads together read a buffer of so many bytes, over and over for about `time`. A buffer much
    /// larger than all caches tells the speed of the memory.
    pub fn read_speed(&self, bytes: usize, time: Duration) -> Result<Speed, BackendError> {
        let team = self.team()?;
        // On large pages, as weights are.
        let buffer =
            Shared::<f32>::zeroed(bytes.div_ceil(4).max(WIDTH), "a buffer to be read")?.on_large_pages();
        // Rounds of one size that cover the buffer but for less than a vector each.
        let rounds = buffer.len().div_ceil(ROUND_BYTES / 4);
        let round = buffer.len() / rounds;
        let part = |i: usize, lane: usize| {
            let part = share(round, WIDTH, lane, team.lanes());
            i * round + part.start..i * round + part.end
        };
        // Pages that nobody has written are all the same page of zeros.
        team.run(&|lane| {
            for i in 0..rounds {
                // SAFETY: each lane has its own part.
                unsafe { buffer.slice_mut(part(i, lane.id)) }.fill(1.0);
            }
        });
        // Memory is as fast at every level, if only the loads are not what is waited for.
        let (level, mut next) = (Level::best(), 0);
        let seconds = repeat(time, || {
            team.run(&|lane| {
                // SAFETY: nobody writes.
                black_box(level.run(Read(unsafe { buffer.slice(part(next, lane.id)) })));
            });
            next = (next + 1) % rounds;
        });
        Ok(Speed::of(seconds, (4 * round) as f64))
    }

    /// Products and sums of small integers that all threads make, at the level's best.
    pub fn integer_speed(&self, time: Duration) -> Result<Speed, BackendError> {
        let level = self.level;
        Ok(units(&*self.team()?, time, INTEGER_OPS, &|turns| level.run_bytes(Dots { turns })))
    }

    /// Products and sums of pairs of BF16 that all threads make, if the level has instructions for them.
    pub fn pair_speed(&self, time: Duration) -> Result<Option<Speed>, BackendError> {
        let level = self.level;
        if !level.has_pairs() {
            return Ok(None);
        }
        Ok(Some(units(&*self.team()?, time, 2 * FLOAT_OPS, &|turns| {
            black_box(level.run_pairs(Pairs { turns }));
        })))
    }

    /// Products and sums of floats that all threads make, fused where the level can.
    pub fn float_speed(&self, time: Duration) -> Result<Speed, BackendError> {
        let level = self.level;
        Ok(units(&*self.team()?, time, FLOAT_OPS, &|turns| {
            black_box(level.run(Fused { turns, factor: black_box(0.999), term: black_box(0.001) }));
        }))
    }
}

impl Speed {
    fn of(mut seconds: Vec<f64>, work: f64) -> Speed {
        seconds.sort_unstable_by(f64::total_cmp);
        Speed { best: work / seconds[0], median: work / seconds[seconds.len() / 2] }
    }
}

/// Seconds of each round, for about so long; the first rounds of all are not counted.
fn repeat(time: Duration, mut round: impl FnMut()) -> Vec<f64> {
    round();
    let begin = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < LEAST_ROUNDS || begin.elapsed() < time {
        let begin = Instant::now();
        round();
        seconds.push(begin.elapsed().as_secs_f64().max(1e-9));
    }
    seconds
}

/// `work` does so many turns, of so many operations each.
fn units(team: &Team, time: Duration, ops_per_turn: usize, work: &(dyn Fn(usize) + Sync)) -> Speed {
    let mut turns = 1000;
    loop {
        let begin = Instant::now();
        team.run(&|_| work(turns));
        if begin.elapsed() >= ROUND / 2 {
            break;
        }
        turns *= 2;
    }
    let seconds = repeat(time, || team.run(&|_| work(turns)));
    Speed::of(seconds, (turns * ops_per_turn * team.lanes()) as f64)
}

/// Touches every element.
struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let mut sums = [isa.zero(); 4];
        let (vectors, rest) = self.0.as_chunks::<WIDTH>();
        let (fours, last) = vectors.as_chunks::<4>();
        for four in fours {
            for (sum, vector) in sums.iter_mut().zip(four) {
                *sum = isa.add(*sum, isa.load(vector));
            }
        }
        for vector in last {
            sums[0] = isa.add(sums[0], isa.load(vector));
        }
        let sum = isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3]));
        isa.sum(sum) + rest.iter().sum::<f32>()
    }
}

/// Sums that are under way at a time: more than the units need to be busy, fewer than there are registers.
const CHAINS: usize = 12;
const FEW_CHAINS: usize = 5;
/// Of one turn, whatever the level: four rounds of twelve chains or twelve of four take the same.
const FLOAT_OPS: usize = 2 * WIDTH * CHAINS * FEW_CHAINS;

struct Fused {
    turns: usize,
    factor: f32,
    term: f32,
}

impl Kernel for Fused {
    type Out = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        match I::MANY_REGISTERS {
            true => chains::<I, CHAINS>(isa, self, FEW_CHAINS),
            false => chains::<I, FEW_CHAINS>(isa, self, CHAINS),
        }
    }
}

#[inline(always)]
fn chains<I: Isa, const N: usize>(isa: I, fused: Fused, rounds: usize) -> f32 {
    let (factor, term) = (isa.splat(fused.factor), isa.splat(fused.term));
    let mut sums = [isa.zero(); N];
    // Chains that begin alike would be one.
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = isa.splat(black_box(i as f32));
    }
    for _ in 0..fused.turns * rounds {
        for sum in &mut sums {
            *sum = isa.fma(*sum, factor, term);
        }
    }
    let mut all = isa.zero();
    for sum in sums {
        all = isa.add(all, sum);
    }
    isa.sum(all)
}

struct Pairs {
    turns: usize,
}

impl Kernel for Pairs {
    type Out = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        // A pair of ones, and one of which nothing grows out of range.
        let (ones, small) = (
            isa.splat(f32::from_bits(black_box(0x3f80_3f80))),
            isa.splat(f32::from_bits(black_box(0x3000_b000))),
        );
        let mut sums = [isa.zero(); CHAINS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = isa.splat(black_box(i as f32));
        }
        for _ in 0..self.turns * FEW_CHAINS {
            for sum in &mut sums {
                *sum = isa.dot_bf16_pairs(ones, small, *sum);
            }
        }
        let mut all = isa.zero();
        for sum in sums {
            all = isa.add(all, sum);
        }
        isa.sum(all)
    }
}

/// Sums of products of bytes that are under way at a time, as for floats: three vectors of codes with four integers, or one
/// vector with four.
const CODES: usize = 3;
const INTEGERS: usize = 4;
/// Of one turn, whatever the level: one round of twelve sums or three of four take the same.
const INTEGER_OPS: usize = 2 * BYTES * CODES * INTEGERS;

/// Dot products of bytes as the kernels make them for codes under 128, with nothing around them.
struct Dots {
    turns: usize,
}

impl ByteKernel for Dots {
    #[inline(always)]
    fn run<I: ByteIsa>(self, isa: I) {
        match I::Floats::MANY_REGISTERS {
            true => dots::<I, CODES>(isa, self.turns),
            false => dots::<I, 1>(isa, self.turns * CODES),
        }
    }
}

#[inline(always)]
fn dots<I: ByteIsa, const N: usize>(isa: I, turns: usize) {
    let bytes: [[u8; BYTES]; CODES] = black_box([[1; BYTES], [2; BYTES], [3; BYTES]]);
    let integers = black_box([0x0102_0304, 0x0203_0401, 0x0304_0102, 0x0401_0203]);
    let mut codes = [isa.load_bytes(&bytes[0]); N];
    for c in 1..N {
        codes[c] = isa.load_bytes(&bytes[c]);
    }
    let mut sums = [[isa.splat_sum(0); N]; INTEGERS];
    for _ in 0..turns {
        // What does not change would be computed once.
        let integers: &[u32; INTEGERS] = black_box(&integers);
        for i in 0..INTEGERS {
            for c in 0..N {
                sums[i][c] = isa.dot::<false>(sums[i][c], codes[c], integers[i]);
            }
        }
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_measured() {
        const SHORT: Duration = Duration::from_millis(20);
        for level in Level::available() {
            let backend = CpuBackend { level, ..CpuBackend::new(2) };
            let read = backend.read_speed((1 << 20) + 12, SHORT).unwrap();
            let (integer, float) =
                (backend.integer_speed(SHORT).unwrap(), backend.float_speed(SHORT).unwrap());
            let pairs = backend.pair_speed(SHORT).unwrap();
            let name = level.name();
            assert_eq!(pairs.is_some(), level.has_pairs(), "{name}");
            // From what an emulated processor does to a hundred times what any machine will do. How the speeds stand to
            // each other is no matter for a test: in so short a time, beside other tests, they are far from it.
            for (what, speed, least, most) in [
                ("read", Some(read), 1e6, 1e14),
                ("integer", Some(integer), 1e6, 1e15),
                ("float", Some(float), 1e6, 1e14),
                ("pairs", pairs, 1e6, 1e15),
            ] {
                let Some(speed) = speed else { continue };
                let ordered = speed.median <= speed.best;
                assert!(ordered && (least..most).contains(&speed.best), "{name} {what}: {speed:?}");
            }
        }
    }

    #[test]
    fn every_element_is_read() {
        for len in [1, 15, 16, 64, 65, 100, 1000] {
            let values: Vec<f32> = (0..len).map(|i| (i % 7) as f32).collect();
            for level in Level::available() {
                assert_eq!(level.run(Read(&values)), values.iter().sum::<f32>(), "{len} {}", level.name());
            }
        }
    }
}
