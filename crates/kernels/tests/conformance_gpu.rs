//! The suite on a GPU of this machine, software ones included. A kernel is compiled for every shape, which takes a software
//! device most of the time: unless `EXOTHERM_GPU_CASES` is `all`, every other case of the ops with many is run, which leaves
//! two shapes or more of every type.

#[path = "gpu_at_hand/mod.rs"]
mod gpu_at_hand;

use exotherm_kernels::Backend;
use exotherm_kernels::conformance::{self, OPS};

/// Ops with more cases than so many have several for every type.
const MANY: usize = 24;

/// What is run of an op's cases: all of those of ops with few, one in `step` of the others.
fn check_op(gpu: &dyn Backend, op: &str, step: usize) {
    let cases = conformance::cases_of(op);
    let all = std::env::var("EXOTHERM_GPU_CASES").is_ok_and(|cases| cases == "all");
    let step = if all || cases.len() <= MANY { 1 } else { step };
    let failures: Vec<String> = cases
        .iter()
        .step_by(step)
        .filter_map(|case| conformance::check(gpu, case).err())
        .map(|failure| failure.to_string())
        .collect();
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// As `conformance!`, but each test may find that there is no GPU.
macro_rules! on_the_gpu {
    ($gpu:ident, $step:literal, $($op:ident),+) => {
        $(#[test]
        fn $op() {
            if let Some(gpu) = gpu_at_hand::$gpu() {
                check_op(gpu, stringify!($op), $step);
            }
        })+
    };
    // And nothing is left out.
    (all $gpu:ident, $step:literal, $($op:ident),+) => {
        on_the_gpu! { $gpu, $step, $($op),+ }

        #[test]
        fn every_op_is_tested() {
            assert_eq!([$(stringify!($op)),+], OPS);
        }
    };
}

on_the_gpu! {
    all gpu, 2, embed, rope_table, norm_linear, qk_rope_write, attention, linear_residual, moe_route, moe_gate_up, moe_down,
    shift_mix, grouped_linear, lora, time_mix, channel_mix, head
}

/// Kernels that round what meets quantized weights.
mod rounded {
    use super::*;

    on_the_gpu! {
        rounding_gpu, 3, norm_linear, linear_residual, moe_route, moe_gate_up, moe_down, grouped_linear, channel_mix, head
    }
}

/// Kernels for devices whose lanes cannot exchange values.
mod plain {
    use super::*;

    on_the_gpu! { plain_gpu, 7, norm_linear, linear_residual, moe_route, moe_gate_up, moe_down, lora, channel_mix, head }
}

#[test]
fn memory() {
    if let Some(gpu) = gpu_at_hand::gpu() {
        conformance::check_memory(gpu).unwrap();
    }
}

#[test]
fn copies() {
    if let Some(gpu) = gpu_at_hand::gpu() {
        conformance::check_copies(gpu).unwrap();
    }
}
