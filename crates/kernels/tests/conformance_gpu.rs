//! The suite on a GPU of this machine, software ones included.

#[path = "gpu_at_hand/mod.rs"]
mod gpu_at_hand;

use exotherm_kernels::conformance::{self, OPS};

/// As `conformance!`, but each test may find that there is no GPU.
macro_rules! on_the_gpu {
    ($($op:ident),+) => {
        $(#[test]
        fn $op() {
            if let Some(gpu) = gpu_at_hand::gpu() {
                conformance::check_op(gpu, stringify!($op));
            }
        })+

        #[test]
        fn every_op_is_tested() {
            assert_eq!([$(stringify!($op)),+], OPS);
        }
    };
}

on_the_gpu! {
    embed, rope_table, norm_linear, qk_rope_write, attention, linear_residual, moe_route, moe_gate_up, moe_down, shift_mix,
    grouped_linear, lora, time_mix, channel_mix, head
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
