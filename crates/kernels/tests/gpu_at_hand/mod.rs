//! The GPU that tests run on: the first of this machine, software ones included. Where there is none a test says that it is
//! skipped, unless `EXOTHERM_TEST_GPU` says that there must be one.

use std::sync::LazyLock;

use exotherm_kernels::gpu::{GpuBackend, GpuOptions, Products};

type OnceOpened = LazyLock<Option<GpuBackend>>;

static FEW: OnceOpened = LazyLock::new(|| open(Products::Few));
static SEVERAL: OnceOpened = LazyLock::new(|| open(Products::Several));
static MANY: OnceOpened = LazyLock::new(|| open(Products::Many));

fn open(products: Products) -> Option<GpuBackend> {
    // Kernels pass with checks before they go without.
    let options = GpuOptions { checked: true, products, ..GpuOptions::default() };
    let gpu = GpuBackend::first(&options).expect("the GPU opens");
    // Set where the tests' own preparations have put one there.
    let must_be = std::env::var_os("EXOTHERM_TEST_GPU").is_some();
    assert!(gpu.is_some() || !must_be, "there is no GPU, not even a software one");
    gpu
}

/// The GPU with the kernels for few rows, or a word about its lack.
pub fn gpu() -> Option<&'static GpuBackend> {
    gpu_with(Products::Few)
}

/// The same with others.
pub fn gpu_with(products: Products) -> Option<&'static GpuBackend> {
    let gpu = match products {
        Products::Auto | Products::Few => &FEW,
        Products::Several => &SEVERAL,
        Products::Many => &MANY,
    };
    if gpu.is_none() {
        println!("SKIPPED: there is no GPU, not even a software one");
    }
    gpu.as_ref()
}
