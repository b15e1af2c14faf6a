//! The GPU that tests run on: the first of this machine, software ones included. Where there is none a test says that it is
//! skipped, unless `EXOTHERM_TEST_GPU` says that there must be one.

use std::sync::LazyLock;

use exotherm_kernels::gpu::{GpuBackend, GpuOptions};

static GPU: LazyLock<Option<GpuBackend>> = LazyLock::new(|| {
    // Kernels pass with checks before they go without.
    let options = GpuOptions { checked: true, ..GpuOptions::default() };
    let gpu = GpuBackend::first(&options).expect("the GPU opens");
    // Set where the tests' own preparations have put one there.
    let must_be = std::env::var_os("EXOTHERM_TEST_GPU").is_some();
    assert!(gpu.is_some() || !must_be, "there is no GPU, not even a software one");
    gpu
});

/// The GPU, or a word about its lack.
pub fn gpu() -> Option<&'static GpuBackend> {
    if GPU.is_none() {
        println!("SKIPPED: there is no GPU, not even a software one");
    }
    GPU.as_ref()
}
