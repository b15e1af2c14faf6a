//! The GPU that tests run on: the first of this machine, software ones included. Where there is none a test says that it is
//! skipped, unless `EXOTHERM_TEST_GPU` says that there must be one.

use std::sync::LazyLock;

use exotherm_kernels::gpu::GpuBackend;

static GPU: LazyLock<Option<GpuBackend>> = LazyLock::new(|| {
    let all = GpuInfo::all();
    match all.first() {
        Some(gpu) => Some(GpuBackend::open(gpu).expect("the GPU opens")),
        None if std::env::var_os("EXOTHERM_TEST_GPU").is_some() => {
            panic!("there is no GPU, not even a software one")
        }
        None => None,
    }
});

/// The GPU, or a word about its lack.
pub fn gpu() -> Option<&'static GpuBackend> {
    if GPU.is_none() {
        println!("SKIPPED: there is no GPU, not even a software one");
    }
    GPU.as_ref()
}
