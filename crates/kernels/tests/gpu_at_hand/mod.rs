//! The GPU that tests run on: the first of this machine, software ones included. Where there is none a test says that it is
//! skipped, unless `EXOTHERM_TEST_GPU` says that there must be one.

use std::io::Write;
use std::sync::LazyLock;

use exotherm_kernels::gpu::{GpuBackend, GpuOptions};

static GPU: LazyLock<Option<GpuBackend>> = LazyLock::new(|| {
    // Kernels pass with checks before they go without.
    let options = GpuOptions { checked: true, ..GpuOptions::default() };
    let gpu = GpuBackend::first(&options).expect("the GPU opens");
    // Set where the tests' own preparations have put one there.
    let must_be = std::env::var_os("EXOTHERM_TEST_GPU").is_some();
    assert!(gpu.is_some() || !must_be, "there is no GPU, not even a software one");
    if gpu.is_none() {
        // Unlike what `println!` prints, this is seen though the tests pass.
        let _ =
            writeln!(std::io::stderr(), "SKIPPED: the tests on a GPU (there is none, not even in software)");
    }
    gpu
});

/// The GPU, if there is one.
pub fn gpu() -> Option<&'static GpuBackend> {
    GPU.as_ref()
}
