//! Holds one backend to another on the same tokens: op by op, in distribution, and in what it would write.

use std::fmt;

use exotherm_kernels::sampling::argmax;
use exotherm_kernels::{Op, Place, Rows};

use crate::error::EngineError;
use crate::evaluate::{Evaluator, Step, log_sum_exp};

/// How far the other backend may be from the reference. What is infinite (for `top1`, 0) is no bound.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    /// Largest difference in a row an op makes, in parts of the row's largest value.
    pub op_error: f64,
    /// The same of the ops that write or read keys and values, which may be stored coarsely.
    pub cache_error: f64,
    /// Largest Kullback-Leibler divergence of a position, in nats.
    pub kl: f64,
    /// Largest mean of the divergences, in nats.
    pub mean_kl: f64,
    /// Least share of positions where both hold the same token for the likeliest.
    pub top1: f64,
    /// Where the likeliest tokens differ: how much likelier, in nats, the reference may hold its own.
    pub flip: f64,
}

impl Tolerance {
    fn of_op(&self, op: &Op) -> f64 {
        match op {
            Op::QkRopeWrite(_) | Op::Attention(_) => self.cache_error,
            _ => self.op_error,
        }
    }
}

/// A bound that was missed, and by which figure.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Missed {
    pub what: &'static str,
    pub measured: f64,
    /// The least for `top-1 agreement`, the most for all others.
    pub bound: f64,
}

/// An op's result that differs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Divergence {
    /// Index of the op in the program.
    pub op: usize,
    pub name: &'static str,
    pub buffer: &'static str,
    pub position: usize,
    /// The difference in parts of the row's largest value, and how large it may be.
    pub error: f64,
    pub bound: f64,
}

impl Divergence {
    /// How near the difference is to its bound, 1 at it; without a bound, how large it is.
    fn nearness(&self) -> f64 {
        if self.bound.is_finite() { self.error / self.bound } else { self.error }
    }
}

#[derive(Clone, Debug)]
pub struct Report {
    pub tolerance: Tolerance,
    /// The first op past the tolerance.
    pub first_divergence: Option<Divergence>,
    /// The difference of any op that comes nearest to its bound.
    pub worst_op: Option<Divergence>,
    /// Positions of the text that were compared, and those where both hold the same token for the likeliest.
    pub positions: usize,
    pub agreements: usize,
    /// Of the reference from the other, in nats.
    pub mean_kl: f64,
    pub max_kl: f64,
    /// Where the likeliest tokens differ, in the text or at the first difference of the outputs: how much
    /// likelier the reference holds its own, at most.
    pub worst_flip: f64,
    /// Greedy continuations of the text.
    pub reference_output: Vec<u32>,
    pub output: Vec<u32>,
}

impl Report {
    pub fn top1_agreement(&self) -> f64 {
        self.agreements as f64 / self.positions as f64
    }

    /// Whether the other backend can be trusted. The outputs may part only where the reference was undecided.
    pub fn agrees(&self) -> bool {
        self.missed().is_empty()
    }

    /// The bounds that were missed. What is no number keeps to none.
    pub fn missed(&self) -> Vec<Missed> {
        let Tolerance { kl, mean_kl, top1, flip, .. } = self.tolerance;
        let mut missed = Vec::new();
        if let Some(Divergence { error, bound, .. }) = self.first_divergence {
            missed.push(Missed { what: "error of an op", measured: error, bound });
        }
        let agreement = self.top1_agreement();
        let kept = [
            ("top-1 agreement", agreement >= top1, agreement, top1),
            ("mean KL", self.mean_kl <= mean_kl, self.mean_kl, mean_kl),
            ("max KL", self.max_kl <= kl, self.max_kl, kl),
            ("worst flip", self.worst_flip <= flip, self.worst_flip, flip),
        ];
        let past = kept.into_iter().filter(|(_, kept, ..)| !kept);
        missed.extend(past.map(|(what, _, measured, bound)| Missed { what, measured, bound }));
        missed
    }

    fn new(tolerance: Tolerance) -> Report {
        Report {
            tolerance,
            first_divergence: None,
            worst_op: None,
            positions: 0,
            agreements: 0,
            mean_kl: 0.0,
            max_kl: 0.0,
            worst_flip: 0.0,
            reference_output: Vec::new(),
            output: Vec::new(),
        }
    }

    pub fn reference_hash(&self) -> QualityHash {
        QualityHash::of(&self.reference_output)
    }

    pub fn hash(&self) -> QualityHash {
        QualityHash::of(&self.output)
    }
}

/// Stands for an output: FNV-1a (64 bits) over its token ids as little-endian u32, shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QualityHash(pub u64);

impl QualityHash {
    pub fn of(tokens: &[u32]) -> QualityHash {
        let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        QualityHash(bytes.fold(0xcbf2_9ce4_8422_2325, step))
    }
}

impl fmt::Display for QualityHash {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Compares `other` with `reference`, which hold the same program, on `tokens` and on the `generate` tokens
/// that each writes after them.
///
/// A step of many rows and one of a single row are first compared op by op. There the other's results are made the
/// reference's after every op, so that each op is asked about the same values: where activations are rounded, the
/// last bit of a value decides now and then which way it goes, and after a few layers nothing else would be seen.
/// Then both run the text from an empty state, each on its own values, for the distributions.
///
/// The evaluators should have as many logit rows as rows in a chunk, or the step of many rows has one row too.
/// `progress` is told the rows done and all there are.
pub fn selfcheck(
    reference: &mut Evaluator,
    other: &mut Evaluator,
    tokens: &[u32],
    generate: usize,
    tolerance: Tolerance,
    progress: impl FnMut(usize, usize),
) -> Result<Report, EngineError> {
    reference.check(tokens)?;
    other.check(tokens)?;
    let ctx = reference.sizes().0.min(other.sizes().0);
    let total = tokens.len().saturating_add(generate);
    if total > ctx {
        return Err(EngineError::TooManyTokens { tokens: total, ctx });
    }
    let mut check = Check { reference, other, report: Report::new(tolerance), progress, total, done: 0 };
    check.check_ops(tokens)?;
    let last = check.read_text(tokens)?;
    check.write_on(tokens, generate, last)?;
    Ok(check.finish())
}

/// Compares the distributions of `other` and `reference` at every position of `tokens`. The text is cut into windows
/// of `window` tokens, each of which is run from an empty state; the last may be shorter.
pub fn compare_text(
    reference: &mut Evaluator,
    other: &mut Evaluator,
    tokens: &[u32],
    window: usize,
    tolerance: Tolerance,
    progress: impl FnMut(usize, usize),
) -> Result<Report, EngineError> {
    if window == 0 {
        return Err(EngineError::Config { name: "window", value: window, must: "at least 1" });
    }
    if tokens.is_empty() {
        return Err(EngineError::EmptyPrompt);
    }
    let total = tokens.len();
    let mut check = Check { reference, other, report: Report::new(tolerance), progress, total, done: 0 };
    for window in tokens.chunks(window) {
        check.reference.check(window)?;
        check.other.check(window)?;
        check.read_text(window)?;
    }
    Ok(check.finish())
}

struct Check<'a, P> {
    reference: &'a mut Evaluator,
    other: &'a mut Evaluator,
    report: Report,
    progress: P,
    total: usize,
    done: usize,
}

impl<P: FnMut(usize, usize)> Check<'_, P> {
    fn finish(mut self) -> Report {
        self.report.mean_kl /= self.report.positions as f64;
        self.report
    }

    fn advance(&mut self, rows: usize) {
        self.done += rows;
        (self.progress)(self.done, self.total);
    }

    /// The longest step from `start` that both have room for.
    fn step<'s>(&self, start: usize, end: usize, wanted: &'s [usize]) -> Step<'s> {
        let (_, chunk, logit_rows) = self.reference.sizes();
        let (_, other_chunk, other_logit_rows) = self.other.sizes();
        Step::new(start, end, wanted, chunk.min(other_chunk), logit_rows.min(other_logit_rows))
    }

    /// Compares op by op the first step, which leaves a token over if it can, and then that token's.
    fn check_ops(&mut self, tokens: &[u32]) -> Result<(), EngineError> {
        let all: Vec<usize> = (0..tokens.len()).collect();
        let many = self.step(0, (tokens.len() - 1).max(1), &all);
        self.run_op_by_op(tokens, &many)?;
        if many.end == tokens.len() {
            return Ok(());
        }
        let one = Step { start: many.end, end: many.end + 1, wanted: &all[many.end..=many.end] };
        self.run_op_by_op(tokens, &one)
    }

    fn run_op_by_op(&mut self, tokens: &[u32], step: &Step) -> Result<(), EngineError> {
        self.reference.load(tokens, step);
        self.other.load(tokens, step);
        for op in 0..self.reference.program().ops().len() {
            self.reference.run_op(op)?;
            self.other.run_op(op)?;
            self.compare_op(op, step);
            self.level(op);
        }
        Ok(())
    }

    /// Gives the other the reference's values in every buffer that the op has to do with.
    fn level(&mut self, op: usize) {
        let mut buffers = Vec::new();
        self.reference.program().ops()[op].for_each_buffer(&mut |buffer| buffers.push(buffer));
        for buffer in buffers {
            let values = self.reference.executor().read(Place::Buffer(buffer));
            self.other.executor().write(Place::Buffer(buffer), &values);
        }
    }

    /// Runs tokens from an empty state and compares every position; returns what each holds for the next token.
    fn read_text(&mut self, tokens: &[u32]) -> Result<[u32; 2], EngineError> {
        let all: Vec<usize> = (0..tokens.len()).collect();
        let (mut start, mut choices) = (0, [0; 2]);
        while start < tokens.len() {
            let step = self.step(start, tokens.len(), &all[start..]);
            self.run(tokens, tokens, &step)?;
            for (a, b) in self.reference.rows().zip(self.other.rows()) {
                choices = compare_rows(a, b, &mut self.report);
            }
            self.advance(step.end - start);
            start = step.end;
        }
        Ok(choices)
    }

    /// Lets each write on greedily from its own first token.
    fn write_on(&mut self, text: &[u32], generate: usize, first: [u32; 2]) -> Result<(), EngineError> {
        let (mut a, mut b) = (text.to_vec(), text.to_vec());
        let mut choices = first;
        for i in 0..generate {
            a.push(choices[0]);
            b.push(choices[1]);
            if i + 1 < generate {
                let position = text.len() + i;
                let step = Step { start: position, end: position + 1, wanted: &[position] };
                self.run(&a, &b, &step)?;
                let was_equal = a == b;
                if let (Some(la), Some(lb)) = (self.reference.rows().next(), self.other.rows().next()) {
                    choices = [choice(la), choice(lb)];
                    if was_equal {
                        self.report.worst_flip = self.report.worst_flip.max(flip(la, choices));
                    }
                }
            }
            self.advance(1);
        }
        self.report.reference_output = a.split_off(text.len());
        self.report.output = b.split_off(text.len());
        Ok(())
    }

    fn run(&mut self, a: &[u32], b: &[u32], step: &Step) -> Result<(), EngineError> {
        self.reference.load(a, step);
        self.other.load(b, step);
        self.reference.run()?;
        self.other.run()
    }

    fn compare_op(&mut self, op: usize, step: &Step) {
        let program = self.reference.program();
        let (name, result) = (program.ops()[op].name(), program.ops()[op].result());
        let bound = self.report.tolerance.of_op(&program.ops()[op]);
        let spec = program.buffer(result).clone();
        let a = self.reference.executor().read(Place::Buffer(result));
        let b = self.other.executor().read(Place::Buffer(result));
        let mut worst: Option<Divergence> = None;
        for (row, (a, b)) in a.chunks_exact(spec.width).zip(b.chunks_exact(spec.width)).enumerate() {
            let error = row_error(a, b);
            if worst.is_none_or(|worst| error > worst.error) {
                let position = match spec.rows {
                    Rows::Batch => step.start + row,
                    Rows::Logits => step.wanted[row],
                };
                worst = Some(Divergence { op, name, buffer: spec.name, position, error, bound });
            }
        }
        let Some(worst) = worst else { return };
        let report = &mut self.report;
        if worst.error > worst.bound {
            report.first_divergence.get_or_insert(worst);
        }
        // Of two bounds the one that is nearer tells more than the larger error.
        if report.worst_op.is_none_or(|so_far| worst.nearness() > so_far.nearness()) {
            report.worst_op = Some(worst);
        }
    }
}

/// The largest difference in parts of the largest value of `a`; infinite where something is no number.
fn row_error(a: &[f32], b: &[f32]) -> f64 {
    let (mut difference, mut largest) = (0.0f64, 0.0f64);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        if !a.is_finite() || !b.is_finite() {
            return f64::INFINITY;
        }
        difference = difference.max((a - b).abs());
        largest = largest.max(a.abs());
    }
    if difference == 0.0 { 0.0 } else { difference / largest }
}

/// Adds a position to the report; returns what each holds for the likeliest.
fn compare_rows(a: &[f32], b: &[f32], report: &mut Report) -> [u32; 2] {
    let choices = [choice(a), choice(b)];
    let kl = divergence(a, b);
    report.positions += 1;
    report.agreements += usize::from(choices[0] == choices[1]);
    report.mean_kl += kl;
    report.max_kl = report.max_kl.max(kl);
    report.worst_flip = report.worst_flip.max(flip(a, choices));
    choices
}

/// The likeliest token; where the logits are no numbers, which the divergence tells, any will do to go on
/// with.
fn choice(logits: &[f32]) -> u32 {
    argmax(logits).unwrap_or(0)
}

/// How much likelier, in nats, `logits` hold the first choice than the second.
fn flip(logits: &[f32], choices: [u32; 2]) -> f64 {
    let at = |token: u32| f64::from(logits[token as usize]);
    let gap = if choices[0] == choices[1] { 0.0 } else { at(choices[0]) - at(choices[1]) };
    if gap.is_nan() { f64::INFINITY } else { gap }
}

/// KL(a ‖ b) in nats; infinite where something is no number. Rounding may make it a hair less than 0.
fn divergence(a: &[f32], b: &[f32]) -> f64 {
    let (sum_a, sum_b) = (log_sum_exp(a), log_sum_exp(b));
    let term = |(&a, &b): (&f32, &f32)| {
        let (log_p, log_q) = (f64::from(a) - sum_a, f64::from(b) - sum_b);
        if log_p == f64::NEG_INFINITY { 0.0 } else { log_p.exp() * (log_p - log_q) }
    };
    let kl: f64 = a.iter().zip(b).map(term).sum();
    if kl.is_nan() { f64::INFINITY } else { kl.max(0.0) }
}

#[cfg(test)]
mod tests {
    use exotherm_kernels::ProgramBuilder;
    use exotherm_kernels::ops::{QkRopeWrite, RopeTable};

    use super::*;

    const TOLERANCE: Tolerance =
        Tolerance { op_error: 1e-3, cache_error: 1e-2, kl: 1e-2, mean_kl: 1e-3, top1: 0.96, flip: 0.1 };

    const HEAD: Divergence =
        Divergence { op: 0, name: "head", buffer: "logits", position: 0, error: 2e-3, bound: 1e-3 };

    /// A report exactly at every bound.
    fn at_the_bounds() -> Report {
        Report {
            positions: 100,
            agreements: 96,
            mean_kl: 1e-3,
            max_kl: 1e-2,
            worst_flip: 0.1,
            ..Report::new(TOLERANCE)
        }
    }

    #[test]
    fn what_is_at_the_bounds_agrees_and_what_is_past_any_does_not() {
        assert!(at_the_bounds().agrees());
        type Past = (fn(&mut Report), &'static [(&'static str, f64, f64)]);
        let past: [Past; 6] = [
            (|r| r.first_divergence = Some(HEAD), &[("error of an op", 2e-3, 1e-3)]),
            (|r| r.max_kl = 1.001e-2, &[("max KL", 1.001e-2, 1e-2)]),
            (|r| r.mean_kl = 1.001e-3, &[("mean KL", 1.001e-3, 1e-3)]),
            (|r| r.agreements = 95, &[("top-1 agreement", 0.95, 0.96)]),
            (|r| r.worst_flip = 0.101, &[("worst flip", 0.101, 0.1)]),
            (
                |r| (r.mean_kl, r.max_kl) = (f64::INFINITY, f64::INFINITY),
                &[("mean KL", f64::INFINITY, 1e-3), ("max KL", f64::INFINITY, 1e-2)],
            ),
        ];
        for (change, missed) in past {
            let mut report = at_the_bounds();
            change(&mut report);
            assert!(!report.agrees());
            let told: Vec<_> = report.missed().iter().map(|m| (m.what, m.measured, m.bound)).collect();
            assert_eq!(told, missed);
        }
    }

    #[test]
    fn ops_of_the_cache_have_a_bound_of_their_own() {
        let mut builder = ProgramBuilder::new();
        let qkv = builder.buffer("qkv", 24);
        let kv = builder.kv_layer(1, 8);
        let write = Op::from(QkRopeWrite { qkv, q_norm: None, k_norm: None, rope: None, heads: 1, kv });
        let inv_freq = builder.vector(vec![1.0; 4]);
        let table = Op::from(RopeTable { inv_freq, magnitude: 1.0, out: qkv });
        assert_eq!((TOLERANCE.of_op(&write), TOLERANCE.of_op(&table)), (1e-2, 1e-3));
        // What is nearer to its own bound is worse, though it be smaller.
        let cached = Divergence { error: 5e-3, bound: 1e-2, ..HEAD };
        assert!(HEAD.nearness() > cached.nearness() && HEAD.error < cached.error);
    }

    #[test]
    fn bounds_that_are_none_let_all_pass_but_what_is_no_number() {
        let none = Tolerance {
            op_error: f64::INFINITY,
            cache_error: f64::INFINITY,
            kl: f64::INFINITY,
            mean_kl: 1.0,
            top1: 0.0,
            flip: f64::INFINITY,
        };
        let mut report =
            Report { tolerance: none, agreements: 0, max_kl: 50.0, worst_flip: 50.0, ..at_the_bounds() };
        assert!(report.agrees());
        report.mean_kl = f64::NAN;
        assert!(!report.agrees());
    }
}
