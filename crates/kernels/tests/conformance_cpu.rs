//! The CPU backend, alone and as a team.

use exotherm_kernels::conformance;
use exotherm_kernels::cpu::CpuBackend;

conformance!(one_thread, CpuBackend::new(1));
conformance!(two_threads, CpuBackend::new(2));
conformance!(three_threads, CpuBackend::new(3));
