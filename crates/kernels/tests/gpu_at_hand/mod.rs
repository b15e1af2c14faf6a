//! The GPU that tests run on: the first of this machine, software ones included. Where there is none a test says that it is
//! skipped, unless `EXOTHERM_TEST_GPU` says that there must be one.

use std::io::Write;
use std::sync::LazyLock;

use exotherm_kernels::gpu::{GpuBackend, GpuOptions, Products, Tuning};

/// Kernels pass with checks before they go without.
const CHECKED: GpuOptions = GpuOptions {
    checked: true,
    rounded: None,
    subgroups: true,
    halves: true,
    matrices: true,
    products: Products::Few,
    tiles: 0,
    tuning: None,
};

static GPU: LazyLock<Option<GpuBackend>> = LazyLock::new(|| opened(CHECKED));
static ROUNDING: LazyLock<Option<GpuBackend>> =
    LazyLock::new(|| opened(GpuOptions { rounded: Some(true), ..CHECKED }));
static TUNED: LazyLock<Option<GpuBackend>> = LazyLock::new(|| {
    let tuning = Tuning { outs: 4, most: 1, held: 2048, prefetch: false, unrolled: 2, ..Tuning::SOFTWARE };
    opened(GpuOptions { rounded: Some(true), tuning: Some(tuning), ..CHECKED })
});
static PLAIN: LazyLock<Option<GpuBackend>> =
    LazyLock::new(|| opened(GpuOptions { subgroups: false, halves: false, matrices: false, ..CHECKED }));
static SEVERAL: LazyLock<Option<GpuBackend>> =
    LazyLock::new(|| opened(GpuOptions { products: Products::Several, ..CHECKED }));
static MANY: LazyLock<Option<GpuBackend>> =
    LazyLock::new(|| opened(GpuOptions { products: Products::Many, ..CHECKED }));

fn opened(options: GpuOptions) -> Option<GpuBackend> {
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
}

/// The GPU with the kernels for few rows, if there is one.
pub fn gpu() -> Option<&'static GpuBackend> {
    GPU.as_ref()
}

/// The same with activations rounded where they meet quantized weights, as real ones may be used.
#[allow(dead_code)]
pub fn rounding_gpu() -> Option<&'static GpuBackend> {
    ROUNDING.as_ref()
}

/// The same again, with products shared out in another way.
#[allow(dead_code)]
pub fn tuned_gpu() -> Option<&'static GpuBackend> {
    TUNED.as_ref()
}

/// The same with nothing that not every device has.
#[allow(dead_code)]
pub fn plain_gpu() -> Option<&'static GpuBackend> {
    PLAIN.as_ref()
}

/// The same with kernels for more rows.
#[allow(dead_code)]
pub fn gpu_with(products: Products) -> Option<&'static GpuBackend> {
    match products {
        Products::Auto | Products::Few => GPU.as_ref(),
        Products::Several => SEVERAL.as_ref(),
        Products::Many => MANY.as_ref(),
    }
}
