//! The suite on a GPU of this machine, software ones included. A kernel is compiled for every shape, which takes a software
//! device most of the time: unless `EXOTHERM_GPU_CASES` is `all`, every other case of the ops with many is run, which leaves
//! two shapes or more of every type.

#[path = "gpu_at_hand/mod.rs"]
mod gpu_at_hand;

use exotherm_kernels::Backend;
use exotherm_kernels::conformance::{self, Case, OPS, large};
use exotherm_kernels::gpu::Products;

/// Ops with more cases than so many have several for every type.
const MANY: usize = 24;

/// What is run of an op's cases: all of those of ops with few, one in `step` of the others.
fn check_op(gpu: &dyn Backend, op: &str, step: usize) {
    let cases = conformance::cases_of(op);
    let all = std::env::var("EXOTHERM_GPU_CASES").is_ok_and(|cases| cases == "all");
    let step = if all || cases.len() <= MANY { 1 } else { step };
    check_cases(gpu, cases.iter().step_by(step));
}

fn check_cases<'a>(gpu: &dyn Backend, cases: impl Iterator<Item = &'a Case>) {
    let failures: Vec<String> = cases
        .filter_map(|case| conformance::check(gpu, case).err())
        .map(|failure| failure.to_string())
        .collect();
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// Ops that multiply rows with matrices have kernels for more rows, too; those have been seen with one shape or two of every
/// type after so many cases.
const SHARE: usize = 5;

fn check_products(products: Products, op: &str, first: usize) {
    let Some(gpu) = gpu_at_hand::gpu_with(products) else { return };
    let all = std::env::var("EXOTHERM_GPU_CASES").is_ok_and(|cases| cases == "all");
    let (first, share) = if all { (0, 1) } else { (first, SHARE) };
    check_cases(gpu, conformance::cases_of(op).iter().skip(first).step_by(share));
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

macro_rules! with_more_rows {
    ($module:ident, $products:expr, $($op:ident at $first:literal),+) => {
        mod $module {
            use super::*;

            $(#[test]
            fn $op() {
                check_products($products, stringify!($op), $first);
            })+

            #[test]
            fn large_ones() {
                if let Some(gpu) = gpu_at_hand::gpu_with($products) {
                    check_cases(gpu, large::cases().iter());
                }
            }
        }
    };
}

with_more_rows!(
    several, Products::Several, norm_linear at 3, linear_residual at 2, moe_route at 0, moe_gate_up at 4, moe_down at 2,
    grouped_linear at 0, lora at 2, channel_mix at 4, head at 2
);

with_more_rows!(
    many, Products::Many, norm_linear at 2, linear_residual at 4, moe_route at 1, moe_gate_up at 2, moe_down at 4,
    grouped_linear at 2, lora at 3, channel_mix at 2, head at 4
);

/// Software devices multiply no matrices as a whole: what they say of the kernels above holds for the text that both share.
#[test]
fn matrices_as_a_whole() {
    for products in [Products::Several, Products::Many] {
        let Some(gpu) = gpu_at_hand::gpu_with(products) else { return };
        if !gpu.multiplies_matrices() {
            println!("SKIPPED: the GPU multiplies no matrices as a whole");
            return;
        }
        check_cases(gpu, large::cases().iter());
        for op in ["norm_linear", "linear_residual", "moe_gate_up", "moe_down", "head"] {
            check_cases(gpu, conformance::cases_of(op).iter());
        }
    }
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
