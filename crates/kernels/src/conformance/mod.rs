//! The suite that every backend passes: each op on many cases against `reference`, and nothing written that the
//! op has no business writing. `conformance!(name, backend)` makes a test per op of it, one of the memory that a program
//! takes and one of the copies of its state.
//!
//! The cases lie with their ops (`ops/<op>/cases.rs`). They can be timed too: `Case` keeps what a run needs.

mod compare;
pub mod data;
pub mod large;
pub mod one_op;
pub mod programs;
pub mod shapes;
mod whole;

use crate::backend::{Backend, BackendError, Limits, Place};
use crate::batch::Batch;
use crate::ops::{self, Op};
use crate::program::Program;

pub use compare::check;
pub use whole::{check_copies, check_memory};

/// One step of a case: what is written first, then the batch that is run.
#[derive(Clone, Debug)]
pub struct Step {
    pub inputs: Vec<(Place, Vec<f32>)>,
    pub batch: Batch,
}

/// A program of one op and the steps it is run on. What no input covers holds garbage before the first step.
#[derive(Clone)]
pub struct Case {
    pub name: String,
    pub program: Program,
    pub limits: Limits,
    pub steps: Vec<Step>,
    pub tolerance: Tolerance,
}

/// How far a value may lie from the reference's: |have − want| ≤ abs + rel · |want|.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    pub abs: f32,
    pub rel: f32,
}

/// Half the distance between two neighbouring f32 around 1.
const ROUNDING: f32 = 1.0 / (1 << 24) as f32;

impl Tolerance {
    /// What is copied or decoded only.
    pub const EXACT: Tolerance = Tolerance { abs: 0.0, rel: 0.0 };

    /// A few roundings of values up to `magnitude`, such as exp or tanh make.
    pub fn roundings(magnitude: f32) -> Tolerance {
        Tolerance { abs: 8.0 * ROUNDING * magnitude, rel: 16.0 * ROUNDING }
    }

    /// An f32 sum of `n` products of either sign up to `magnitude`, added up in any order. The partial sums grow
    /// like a random walk, so each addition rounds by about √k · magnitude · 2⁻²⁴, and the n roundings together make
    /// n · magnitude · 2⁻²⁴; four times that is allowed. A sum itself is about √n · magnitude / 3, so this stays under
    /// 10⁻⁴ of it for all widths in the suite.
    pub fn sum(n: usize, magnitude: f32) -> Tolerance {
        Tolerance { abs: 4.0 * ROUNDING * (n as f32).max(4.0) * magnitude, rel: 16.0 * ROUNDING }
    }

    /// The tolerance of something that multiplies the error by `factor`.
    pub fn times(self, factor: f32) -> Tolerance {
        Tolerance { abs: self.abs * factor, rel: self.rel * factor.max(1.0) }
    }

    /// The error that is allowed in a value that should be `want`.
    pub fn at(&self, want: f32) -> f32 {
        self.abs + self.rel * want.abs()
    }

    pub fn allows(&self, want: f32, have: f32) -> bool {
        have.is_finite() && (have - want).abs() <= self.at(want)
    }
}

/// Why a backend does not pass a case.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{op}, case {case}: {backend} refused it: {error}")]
    Refused { op: &'static str, case: String, backend: &'static str, error: BackendError },
    #[error("{op}, case {case}, step {step}, {place}: {kind}")]
    Wrong { op: &'static str, case: String, step: usize, place: String, kind: FailureKind },
}

/// What is wrong in a place.
#[derive(Debug, thiserror::Error)]
pub enum FailureKind {
    #[error("{have} elements are read, not {want}")]
    Size { want: usize, have: usize },
    #[error("what was written at {index} reads back as {have}, not {want}")]
    Stored { index: usize, want: f32, have: f32 },
    #[error("{have} was written at {index}, where the op writes nothing, over {want}")]
    Spilled { index: usize, want: f32, have: f32 },
    /// The largest error of all.
    #[error(
        "{wrong} values are wrong; at {index} it is {have}, not {want} (off by {abs_error:e}, {rel_error:e} of it)"
    )]
    Differs { wrong: usize, index: usize, want: f32, have: f32, abs_error: f32, rel_error: f32 },
}

/// All cases of all ops.
pub fn cases() -> Vec<Case> {
    OPS.iter().flat_map(|op| cases_of(op)).collect()
}

/// Checks all cases of an op, and panics with all that failed.
pub fn check_op(backend: &dyn Backend, op: &str) {
    let failures: Vec<String> =
        cases_of(op).iter().filter_map(|case| check(backend, case).err()).map(|f| f.to_string()).collect();
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// Calls the macro `then` with the name and the type of every op.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_op {
    ($then:ident $args:tt) => {
        $crate::$then! {
            $args
            embed Embed, rope_table RopeTable, norm_linear NormLinear, qk_rope_write QkRopeWrite,
            attention Attention, linear_residual LinearResidual, moe_route MoeRoute, moe_gate_up MoeGateUp,
            moe_down MoeDown, shift_mix ShiftMix, grouped_linear GroupedLinear, lora Lora, time_mix TimeMix,
            channel_mix ChannelMix, head Head
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tables {
    (() $($module:ident $variant:ident),+) => {
        /// The ops' names, as `Op::name` gives them.
        pub const OPS: &[&str] = &[$(stringify!($module)),+];

        /// The cases of one op.
        pub fn cases_of(op: &str) -> Vec<Case> {
            $(if op == stringify!($module) {
                return ops::$module::cases::cases();
            })+
            panic!("there is no op {op}")
        }

        /// The op's name in the suite. An op that is missing from `for_each_op!` does not get past this match.
        fn suite_of(op: &Op) -> &'static str {
            match op { $(Op::$variant(_) => stringify!($module)),+ }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    (($name:ident, $backend:expr) $($module:ident $variant:ident),+) => {
        mod $name {
            use super::*;

            $(#[test]
            fn $module() {
                $crate::conformance::check_op(&$backend, stringify!($module));
            })+

            #[test]
            fn memory() {
                $crate::conformance::check_memory(&$backend).unwrap();
            }

            #[test]
            fn copies() {
                $crate::conformance::check_copies(&$backend).unwrap();
            }
        }
    };
}

/// Holds a backend to the reference, a test per op and two of programs as a whole: `conformance!(cpu, CpuBackend::new(2));`
#[macro_export]
macro_rules! conformance {
    ($name:ident, $backend:expr) => {
        $crate::for_each_op!(conformance_tests($name, $backend));
    };
}

crate::for_each_op!(conformance_tables());
