//! Sampling on the team of the CPU backend: every lane chooses for rows of its own, and what is left over is shared out by
//! blocks of the vocabulary. Both give the same, because greatest values and sums of whole numbers do not depend on who
//! finds them.

mod desk;
pub(super) mod keys;
mod scan;

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use super::weights::Weights;
use super::{SampleRow, Sampled};
use crate::backend::BackendError;
use crate::cpu::{Level, Member, Team, share};
use desk::{Desk, Reading};
use scan::{BLOCK, Scan, Weigh, greatest};

/// What weighing a token takes, in times of what looking at its logit takes.
const WEIGHING: usize = 16;

/// Logits that are looked at in about the time in which the other lanes wake up and meet a few times, with room for a machine
/// that has other things to do.
const WORTH_SHARING: usize = 1 << 18;

/// All the memory in which tokens are chosen.
pub(crate) struct CpuSampler {
    /// One for each lane; a row that all work on lies on the first.
    desks: Vec<Desk>,
}

impl CpuSampler {
    pub fn new(vocab: usize, lanes: usize) -> Result<CpuSampler, BackendError> {
        Ok(CpuSampler { desks: (0..lanes).map(|_| Desk::new(vocab)).collect::<Result<_, _>>()? })
    }

    /// The memory of one for so many tokens and lanes.
    pub fn bytes_for(vocab: usize, lanes: usize) -> usize {
        Desk::bytes_for(vocab).saturating_mul(lanes)
    }

    pub fn bytes(&self) -> usize {
        self.desks.iter().map(Desk::bytes).sum()
    }

    /// Chooses a token for every row; `logits` gives the logits of one, all of the vocabulary's length.
    pub fn sample<'a>(
        &mut self,
        team: &Team,
        level: Level,
        logits: &(dyn Fn(usize) -> &'a [f32] + Sync),
        rows: &[SampleRow],
        out: &mut Vec<Sampled>,
    ) {
        out.clear();
        out.resize(rows.len(), Sampled::default());
        let Some(first) = rows.first() else { return };
        let (desks, lanes) = (&self.desks, self.desks.len());
        let vocab = logits(first.logits).len();
        let efforts = || rows.iter().map(|row| effort(row, vocab));
        if lanes == 1 || efforts().sum::<usize>() < WORTH_SHARING {
            let bench = Bench { level, crew: Crew::One, desk: &desks[0] };
            rows.iter().zip(out).for_each(|(row, to)| *to = bench.sample(logits(row.logits), row));
            return;
        }
        // Of rows that are no multiple of the lanes, the last are shared out if that is worth it.
        let whole = rows.len() / lanes * lanes;
        let is_shared = efforts().skip(whole).any(|effort| effort >= WORTH_SHARING);
        let alone = if is_shared { whole } else { rows.len() };
        let out = Places::new(out);
        team.run(&|member| {
            let bench = Bench { level, crew: Crew::One, desk: &desks[member.id] };
            for at in share(alone, 1, member.id, member.of) {
                let sampled = bench.sample(logits(rows[at].logits), &rows[at]);
                // SAFETY: the row is of this lane's share alone.
                unsafe { out.put(at, sampled) };
            }
            let bench = Bench { level, crew: Crew::All(member), desk: &desks[0] };
            for (at, row) in rows.iter().enumerate().skip(alone) {
                // All have done with what lay on the desk.
                bench.crew.meet();
                let sampled = bench.sample(logits(row.logits), row);
                if bench.crew.leads() {
                    // SAFETY: one lane leads.
                    unsafe { out.put(at, sampled) };
                }
            }
        });
    }
}

/// About how long a row takes, in logits that are looked at in that time.
fn effort(row: &SampleRow, vocab: usize) -> usize {
    let weighs = draws_from_all(row, vocab);
    let weighings = usize::from(weighs) + usize::from(row.logprobs.is_some());
    vocab.saturating_mul(1 + WEIGHING * weighings)
}

/// Whether a token is drawn by the weights of all tokens.
fn draws_from_all(row: &SampleRow, vocab: usize) -> bool {
    row.given.is_none() && row.sampling.temperature > 0.0 && !row.sampling.limits_count(vocab)
}

/// A slice of which lanes write disjoint elements.
struct Places<'a> {
    first: NonNull<Sampled>,
    len: usize,
    slice: PhantomData<&'a mut [Sampled]>,
}

// SAFETY: elements are plain values, and the callers of `put` write each from one lane alone.
unsafe impl Sync for Places<'_> {}

impl<'a> Places<'a> {
    fn new(slice: &'a mut [Sampled]) -> Places<'a> {
        Places { len: slice.len(), first: NonNull::from(slice).cast(), slice: PhantomData }
    }

    /// # Safety
    /// No other lane puts anything there.
    unsafe fn put(&self, at: usize, sampled: Sampled) {
        assert!(at < self.len);
        // SAFETY: inside the slice that this borrows, and the caller's promise.
        unsafe { self.first.add(at).write(sampled) };
    }
}

/// Who works on a row: one lane, or all of them.
enum Crew<'a> {
    One,
    All(&'a Member<'a>),
}

impl Crew<'_> {
    /// This lane's part of so many blocks.
    fn part(&self, blocks: usize) -> Range<usize> {
        match self {
            Crew::One => 0..blocks,
            Crew::All(member) => share(blocks, 1, member.id, member.of),
        }
    }

    fn leads(&self) -> bool {
        matches!(self, Crew::One | Crew::All(Member { id: 0, .. }))
    }

    /// Waits for the others; what they wrote before can be read after.
    fn meet(&self) {
        if let Crew::All(member) = self {
            member.barrier();
        }
    }
}

/// A lane at a desk, with whom it works there.
struct Bench<'a> {
    level: Level,
    crew: Crew<'a>,
    desk: &'a Desk,
}

impl Bench<'_> {
    /// Every lane of the crew calls it; what it returns to others than the leader is not what came of the row.
    fn sample(&self, logits: &[f32], row: &SampleRow) -> Sampled {
        let (sampling, mut sampled) = (row.sampling, Sampled::default());
        let logits = sampling.known(logits);
        let is_changed = row.given.is_none() && (!sampling.logit_bias.is_empty() || sampling.penalizes());
        let used = if is_changed { self.changed(logits, row) } else { logits };
        let Some(max) = self.scan(used) else { return sampled };
        let mut weighed = None;
        if draws_from_all(row, logits.len()) {
            // What top-p keeps is a share of all, before min-p.
            let floor = if sampling.top_p < 1.0 { f64::NEG_INFINITY } else { sampling.floor(max) };
            self.weigh(used, Weights::new(max, sampling.temperature), floor);
            weighed = Some((sampling.temperature, floor));
        }
        if self.crew.leads() {
            sampled.token = row.given.or_else(|| Some(self.reading(used, max).choose(row)));
        }
        let Some(n) = row.logprobs else { return sampled };
        let mut max = max;
        if is_changed || weighed != Some((1.0, f64::NEG_INFINITY)) {
            // The leader has done with what the others write anew.
            self.crew.meet();
            if is_changed {
                max = self.scan(logits).expect("numbers that were changed were numbers before");
            }
            self.weigh(logits, Weights::new(max, 1.0), f64::NEG_INFINITY);
        }
        sampled.logprobs = sampled.token.map(|token| self.reading(logits, max).logprobs(token, n));
        sampled
    }

    /// The logits with bias and penalties.
    fn changed(&self, logits: &[f32], row: &SampleRow) -> &[f32] {
        let part = tokens(self.crew.part(blocks(logits)), logits.len());
        // SAFETY: parts are disjoint, and nobody reads them before the crew meets.
        unsafe { self.desk.changed.slice_mut(part.clone()) }.copy_from_slice(&logits[part]);
        self.crew.meet();
        if self.crew.leads() {
            // SAFETY: the others touch nothing of the desk before they meet again.
            unsafe { self.desk.change(logits.len(), row) };
        }
        self.crew.meet();
        // SAFETY: nobody writes them any more while this row is worked on.
        unsafe { self.desk.changed.slice(0..logits.len()) }
    }

    /// Finds the greatest of every block and of all.
    fn scan(&self, logits: &[f32]) -> Option<f32> {
        let blocks = blocks(logits);
        let part = self.crew.part(blocks);
        let logits_of_part = &logits[tokens(part.clone(), logits.len())];
        // SAFETY: parts are disjoint, and nobody reads them before the crew meets.
        let maxes = unsafe { self.desk.maxes.slice_mut(part) };
        self.level.run(Scan { logits: logits_of_part, maxes });
        self.crew.meet();
        // SAFETY: nobody writes them before the crew has met again.
        let maxes = unsafe { self.desk.maxes.slice(0..blocks) };
        greatest(maxes).filter(|&max| max > f32::MIN || logits.contains(&f32::MIN))
    }

    /// Adds up the weights of every block, without tokens below the floor.
    fn weigh(&self, logits: &[f32], weights: Weights, floor: f64) {
        let part = self.crew.part(blocks(logits));
        // SAFETY: scanned before the crew met, and not written again before it meets.
        let maxes = unsafe { self.desk.maxes.slice(part.clone()) };
        // SAFETY: parts are disjoint, and nobody reads them before the crew meets.
        let sums = unsafe { self.desk.sums.slice_mut(part.clone()) };
        let logits = &logits[tokens(part, logits.len())];
        self.level.run(Weigh { logits, maxes, weights, floor, sums });
        self.crew.meet();
    }

    /// What the leader chooses from.
    fn reading<'r>(&'r self, logits: &'r [f32], max: f32) -> Reading<'r> {
        debug_assert!(self.crew.leads());
        // SAFETY: only the leader calls it, when the crew has met after the desk was last written, and lets go of it
        // before the crew meets again.
        unsafe { self.desk.reading(self.level, logits, max) }
    }
}

fn blocks(logits: &[f32]) -> usize {
    logits.len().div_ceil(BLOCK)
}

/// The tokens of these blocks of a vocabulary.
fn tokens(blocks: Range<usize>, vocab: usize) -> Range<usize> {
    (blocks.start * BLOCK).min(vocab)..(blocks.end * BLOCK).min(vocab)
}
