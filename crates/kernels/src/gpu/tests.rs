//! What can be known of kernels without a device.

use std::collections::{BTreeSet, HashSet};

use super::GpuBackend;
use super::device::{GpuInfo, GpuOptions, Products, Traits};
use super::many;
use super::record::{KernelText, Recording, record};
use crate::backend::{KvType, Limits};
use crate::conformance::{Case, cases, cases_of, check, large, programs};
use crate::ops::Op;
use crate::program::{MatId, Program};

fn recorded(program: &Program, limits: &Limits) -> Recording {
    record(program, limits, &Traits::LEAST).expect("everything fits")
}

/// Parses and validates a kernel and writes it as MSL and SPIR-V.
fn translate(text: &str) -> Result<(), String> {
    use naga::back::{msl, spv};
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    // Halves as they are packed in words all devices have; of the rest a kernel says what it uses.
    use naga::valid::Capabilities;
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SHADER_FLOAT16, text.contains("enable f16;"));
    let has_matrices = text.contains("enable wgpu_cooperative_matrix;");
    capabilities.set(Capabilities::COOPERATIVE_MATRIX | Capabilities::SUBGROUP, has_matrices);
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(text))?;
    let options =
        msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..msl::Options::default() };
    let (metal, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .map_err(|e| format!("MSL: {e}"))?;
    assert!(metal.contains("kernel void"));
    let words =
        spv::write_vec(&module, &info, &spv::Options::default(), None).map_err(|e| format!("SPIR-V: {e}"))?;
    assert_eq!(words[0], 0x0723_0203, "SPIR-V begins with its number");
    Ok(())
}

/// Of a device that has everything.
const MOST: Traits = Traits {
    subgroup: Some((32, 32)),
    halves: true,
    matrices: true,
    large_tiles: true,
    workgroup_memory: 48 << 10,
    ..Traits::LEAST
};

/// Calls `check` with every kernel that a device with these traits gets for the suite, once.
fn each_kernel(traits: &Traits, check: impl Fn(&Case, &KernelText)) -> usize {
    let mut seen = HashSet::new();
    for case in cases() {
        for kernel in record(&case.program, &case.limits, traits).expect("everything fits").kernels {
            if seen.insert(kernel.text.clone()) {
                check(&case, &kernel);
            }
        }
    }
    seen.len()
}

fn all_translate(traits: &Traits) {
    let count = each_kernel(traits, |case, kernel| {
        if let Err(why) = translate(&kernel.text) {
            panic!("{}, {}: {why}", case.name, kernel.label);
        }
    });
    assert!(count > 100, "only {count} kernels");
}

#[test]
fn every_kernel_is_valid_and_translates() {
    all_translate(&Traits::LEAST);
}

#[test]
fn those_for_more_rows_are_valid_and_translate() {
    all_translate(&Traits { several_from: 0, many_from: 8, ..Traits::LEAST });
}

#[test]
fn those_with_halves_and_matrices_are_valid_and_translate() {
    all_translate(&Traits { several_from: 0, many_from: 8, ..MOST });
    let with_halves = Traits { matrices: false, large_tiles: false, ..MOST };
    all_translate(&Traits { several_from: 0, many_from: 8, ..with_halves });
}

#[test]
fn all_choices_of_tiles_translate() {
    for (case, tiles) in
        large::cases().iter().flat_map(|case| (0..many::TILES).map(move |tiles| (case, tiles)))
    {
        for several_from in [0, usize::MAX] {
            let many_from = usize::MAX - several_from;
            let traits = Traits { several_from, many_from, tiles, ..MOST };
            for kernel in record(&case.program, &case.limits, &traits).expect("everything fits").kernels {
                translate(&kernel.text).unwrap_or_else(|why| panic!("{}, tiles {tiles}: {why}", case.name));
            }
        }
    }
}

/// Bindings that a kernel has besides the step's two: as many as a browser's device lets it have at least. What the lanes of a
/// workgroup share is no more than every device has, but for those that multiply matrices as a whole.
#[test]
fn no_kernel_takes_more_than_devices_have() {
    let sizes = Traits { several_from: 0, many_from: 8, ..Traits::LEAST };
    for (traits, memory) in [
        (Traits::LEAST, 16 << 10),
        (sizes, 16 << 10),
        (Traits { several_from: 0, many_from: 8, ..MOST }, 48 << 10),
    ] {
        each_kernel(&traits, |_, kernel| {
            assert!(kernel.is_written.len() + 2 <= 8, "{} has {}", kernel.label, kernel.is_written.len());
            let module = naga::front::wgsl::parse_str(&kernel.text).expect("it is valid");
            let shared =
                module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
            let bytes: u32 = shared.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum();
            assert!(bytes <= memory, "{} shares {bytes} bytes", kernel.label);
        });
    }
}

fn limits(kv_type: KvType) -> Limits {
    Limits { rows: 16, logit_rows: 4, blocks: 8, slots: 4, kv_type }
}

/// A change of the step's size alone makes no other kernels than a change of the program.
#[test]
fn layers_share_their_kernels() {
    let program = programs::draw(programs::Kind::Recurrent, 3);
    let recording = recorded(&program, &limits(KvType::F32));
    assert!(recording.kernels.len() < recording.dispatches.len());
}

/// A matrix past the largest binding lies in several buffers, and every row of it in one.
#[test]
fn large_matrices_are_split() {
    let program = programs::draw(programs::Kind::Dense, 1);
    let whole = recorded(&program, &limits(KvType::F16));
    let small = Traits { max_binding: 4096, ..Traits::LEAST };
    let split =
        record(&program, &Limits { rows: 1, logit_rows: 1, blocks: 1, ..limits(KvType::F16) }, &small);
    let split = split.expect("rows are small");
    assert!(split.buffers.iter().all(|b| b.bytes <= 4096 || b.bytes == split.buffers[0].bytes));
    assert!(split.buffers.len() > whole.buffers.len());
    assert_eq!(split.memory().weights, whole.memory().weights);
}

/// With bindings so small that matrices lie in several buffers, all kernels make what they make of whole ones.
#[test]
fn split_matrices_are_multiplied() {
    const BINDING: usize = 60 << 10;
    let Some(info) = GpuInfo::all().into_iter().next() else {
        println!("SKIPPED: there is no GPU, not even a software one");
        return;
    };
    for products in [Products::Few, Products::Several, Products::Many] {
        let options = GpuOptions { checked: true, products, ..GpuOptions::default() };
        let mut gpu = info.open(&options).expect("the GPU opens");
        gpu.traits.max_binding = BINDING;
        let backend = GpuBackend { gpu, products };
        for op in ["norm_linear", "linear_residual", "moe_gate_up", "moe_down", "head"] {
            let cases = cases_of(op).into_iter().filter(|case| {
                let largest = case.program.matrices().iter().map(|m| m.bytes()).max();
                case.limits.rows <= 4 && largest > Some(BINDING)
            });
            let cases: Vec<Case> = cases.step_by(3).collect();
            assert!(!cases.is_empty(), "{op}");
            cases.iter().for_each(|case| {
                check(&backend, case).unwrap_or_else(|why| panic!("{products:?}: {why}"));
            });
        }
    }
}

/// The tiles of devices that multiply matrices as a whole, lane by lane: what is not the products themselves is the same text.
#[test]
fn large_tiles_are_right_lane_by_lane() {
    let Some(info) = GpuInfo::all().into_iter().next() else {
        println!("SKIPPED: there is no GPU, not even a software one");
        return;
    };
    for products in [Products::Several, Products::Many] {
        let options = GpuOptions { checked: true, matrices: false, products, ..GpuOptions::default() };
        let mut gpu = info.open(&options).expect("the GPU opens");
        gpu.traits.large_tiles = true;
        for (case, tiles) in large::cases().iter().zip((0..many::TILES).cycle()) {
            gpu.traits.tiles = tiles;
            let backend = GpuBackend { gpu: gpu.clone(), products };
            check(&backend, case).unwrap_or_else(|why| panic!("{products:?}, tiles {tiles}: {why}"));
        }
    }
}

/// Where runs of rows of one type begin in a matrix, but for the first.
fn borders(program: &Program, id: MatId) -> BTreeSet<usize> {
    let runs = program.matrix(id).segments.chunk_by(|a, b| a.dtype() == b.dtype());
    let ends = runs.scan(0, |end, run| {
        *end += run.iter().map(|tensor| tensor.n_rows()).sum::<usize>();
        Some(*end)
    });
    ends.filter(|&end| end < program.matrix(id).n_out).collect()
}

/// What ARCHITECTURE.md says of an op's dispatches: each waits for the one before it, so their number decides how fast one row
/// is.
fn said(program: &Program, op: &Op) -> usize {
    let runs = |id| 1 + borders(program, id).len();
    match op {
        Op::Embed(op) => runs(op.table),
        Op::NormLinear(op) => runs(op.weight) + usize::from(op.activation.is_gated() && runs(op.weight) > 1),
        Op::LinearResidual(op) => runs(op.weight) + usize::from(op.post_norm.is_some()),
        Op::MoeGateUp(op) => 1 + (&borders(program, op.gate) | &borders(program, op.up)).len(),
        Op::MoeDown(op) => runs(op.down),
        Op::GroupedLinear(op) => op.groups.iter().map(|&(_, id)| runs(id)).sum(),
        Op::Lora(op) => op.pairs.iter().map(|pair| runs(pair.down) + runs(pair.up)).sum(),
        Op::ChannelMix(op) => 1 + runs(op.weight),
        Op::Head(op) => runs(op.weight),
        _ => 1,
    }
}

#[test]
fn ops_take_as_many_dispatches_as_is_said() {
    for kind in [programs::Kind::Dense, programs::Kind::Experts, programs::Kind::Recurrent] {
        for program in (0..12).map(|seed| programs::draw(kind, seed)) {
            let recording = recorded(&program, &limits(KvType::F16));
            for (i, op) in program.ops().iter().enumerate() {
                let count = recording.dispatches.iter().filter(|dispatch| dispatch.op == i).count();
                assert_eq!(count, said(&program, op), "{kind:?}, {}", op.name());
            }
        }
    }
}
