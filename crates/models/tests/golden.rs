//! Every family against the logits of an independent implementation (see golden/README.md), on each backend,
//! with the prompt in one chunk, in many chunks, and token by token.

mod common;
#[path = "../../kernels/tests/gpu_at_hand/mod.rs"]
mod gpu_at_hand;

use std::path::Path;

use exotherm_kernels::Backend;
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::profile::{Part, parts};
use exotherm_kernels::reference::ReferenceBackend;

use common::{Expected, expected, golden_dir, logits, open};

/// Largest difference of a logit that is let pass. The implementations differ by up to 1e-5; 1e-3 would hide one GELU
/// taken for the other.
const TOLERANCE: f32 = 1e-4;

fn check(path: &Path, want: &Expected) {
    let program = open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).program;
    let n = want.tokens.len();
    let cpu = CpuBackend::with_exact_floats(2);
    let gpu = gpu_at_hand::gpu().map(|gpu| gpu as &dyn Backend);
    for backend in [&ReferenceBackend as &dyn Backend, &cpu].into_iter().chain(gpu) {
        for chunk in [n, 7, 1] {
            let have = logits(backend, &program, want, chunk);
            assert_eq!(have.len(), want.logits.len());
            let mut worst = 0.0f32;
            for (have, want) in have.iter().flatten().zip(want.logits.iter().flatten()) {
                assert!(have.is_finite());
                worst = worst.max((have - want).abs());
            }
            println!("{} {} chunk {chunk}: {worst:.1e}", path.display(), backend.name());
            assert!(
                worst <= TOLERANCE,
                "{} on {} in chunks of {chunk}: {worst}",
                path.display(),
                backend.name()
            );
        }
    }
}

/// A copy of the case's folder in which config.json is the older spelling.
fn with_old_config(case: &Path) -> Option<tempfile::TempDir> {
    if !case.join("config.old.json").exists() {
        return None;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(case).expect("the case's folder").flatten() {
        if entry.path().extension().is_some_and(|e| e == "safetensors")
            || entry.path().ends_with("model.safetensors.index.json")
        {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a small copy");
        }
    }
    std::fs::copy(case.join("config.old.json"), dir.path().join("config.json")).expect("a small copy");
    Some(dir)
}

fn check_case(case: &str) {
    let dir = golden_dir().join(case);
    let want = expected(&dir);
    check(&dir, &want);
    if let Some(old) = with_old_config(&dir) {
        check(old.path(), &want);
    }
    let gguf = dir.join("model.gguf");
    if gguf.exists() {
        check(&gguf, &want);
    }
}

macro_rules! golden {
    ($($test:ident => $case:literal),+ $(,)?) => {
        $(#[test] fn $test() { check_case($case); })+
        const CASES: &[&str] = &[$($case),+];
    };
}

golden! {
    gemma3 => "gemma3",
    gemma3_mm => "gemma3-mm",
    gemma3_mm_new => "gemma3-mm-new",
    gemma3_six => "gemma3-six",
    gemma3_two => "gemma3-two",
    gpt2 => "gpt2",
    gpt2_bare => "gpt2-bare",
    llama_f16 => "llama-f16",
    llama_linear_tied => "llama-linear-tied",
    llama_rope3 => "llama-rope3",
    llama_sharded => "llama-sharded",
    qwen2 => "qwen2",
    qwen2_bf16 => "qwen2-bf16",
    qwen3 => "qwen3",
    qwen3moe => "qwen3moe",
    qwen3moe_fused => "qwen3moe-fused",
    qwen3moe_raw => "qwen3moe-raw",
    rwkv7 => "rwkv7",
    rwkv7_nov0 => "rwkv7-nov0",
}

/// The level that rounds activations to BF16, on weights that are: it moved logits of up to 8 by 6.8e-2.
#[test]
fn rounding_to_bf16_moves_logits_a_little() {
    let Some(backend) = CpuBackend::with_level(2, "avx512bf16") else {
        println!("SKIPPED: this processor has no avx512bf16");
        return;
    };
    let dir = golden_dir().join("qwen2-bf16");
    let want = expected(&dir);
    let have = logits(&backend, &open(&dir).expect("the model").program, &want, 7);
    let pairs = have.iter().flatten().zip(want.logits.iter().flatten());
    let worst = pairs.map(|(have, want)| (have - want).abs()).fold(0.0, f32::max);
    assert!(worst > TOLERANCE && worst < 0.1, "{worst}");
}

#[test]
fn every_case_of_the_folder_is_tested() {
    let mut found: Vec<String> = std::fs::read_dir(golden_dir())
        .expect("the golden folder")
        .flatten()
        .filter(|e| e.path().is_dir())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, CASES);
}

/// A letter for the part that each op belongs to, layer by layer.
#[test]
fn ops_belong_to_the_parts_of_their_layers() {
    let experts = ["pkapff", "pkapfff", "pkapff", "pkapff"];
    let cases: [(&str, &[&str]); 4] = [
        ("qwen3", &["pkapff"; 2]),
        ("qwen3moe", &experts),
        ("gpt2", &["pkapff"; 2]),
        ("rwkv7/model.gguf", &["pppapff"; 3]),
    ];
    for (case, layers) in cases {
        let program = open(&golden_dir().join(case)).expect("loads").program;
        let letter = |part| match part {
            Part::KvWrite => 'k',
            Part::Attention => 'a',
            Part::Projections => 'p',
            Part::FeedForward => 'f',
            Part::Head => 'h',
            Part::Other => 'o',
        };
        let letters: String = parts(&program).into_iter().map(letter).collect();
        assert_eq!(letters.trim_start_matches('o'), layers.concat() + "h", "{case}");
    }
}
