//! A GPU for the tests: Mesa's in software, where there is no other.

use std::path::Path;
use std::process::Command;

const PACKAGES: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];

/// Where drivers say that they are there.
const DRIVERS: [&str; 2] = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"];

/// Sees to a Vulkan driver, installing one where apt may, and tells the tests whether there must be a GPU; gives that, too.
pub fn prepare(tests: &mut Command, offline: bool, heavy: bool) -> bool {
    if heavy {
        tests.env("EXOTHERM_GPU_CASES", "all");
    }
    if cfg!(target_os = "macos") {
        tests.env("EXOTHERM_TEST_GPU", "1");
        return true;
    }
    if !has_driver() && !offline && is_root() {
        println!("── a GPU in software: {}", PACKAGES.join(", "));
        if !install() {
            println!("it could not be installed");
        }
    }
    if !has_driver() {
        println!(
            "SKIPPED: the tests on a GPU (there is no Vulkan driver; {} have one)",
            PACKAGES.join(" and ")
        );
        return false;
    }
    // Compiling kernels is most of what such tests do: the software driver need not make them fast. And a layer of Mesa's that
    // chooses among GPUs asks a desktop which it prefers, complaining where there is none.
    tests.env("EXOTHERM_TEST_GPU", "1").env("GALLIVM_PERF", "nopt").env("NODEVICE_SELECT", "1");
    true
}

fn has_driver() -> bool {
    let names_one = |folder: &str| {
        let files = Path::new(folder).read_dir().into_iter().flatten().flatten();
        files.into_iter().any(|file| file.path().extension().is_some_and(|e| e == "json"))
    };
    let told = Command::new("ldconfig").arg("-p").output();
    let loader = told.is_ok_and(|told| String::from_utf8_lossy(&told.stdout).contains("libvulkan.so.1"));
    loader && DRIVERS.iter().any(|folder| names_one(folder))
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}

fn install() -> bool {
    let apt = |words: &[&str]| {
        let mut apt = Command::new("apt-get");
        let quiet = apt.args(["-qq", "-o", "DPkg::Lock::Timeout=60"]).args(words);
        quiet.env("DEBIAN_FRONTEND", "noninteractive").output().is_ok_and(|out| out.status.success())
    };
    let install = [&["install", "--no-install-recommends", "-y"][..], &PACKAGES].concat();
    apt(&["update"]) && apt(&install)
}
