//! What can be known of kernels without a device.

use std::collections::{BTreeSet, HashSet};

use super::GpuBackend;
use super::device::{GpuInfo, GpuOptions, Products, Traits};
use super::in_step::Tuning;
use super::many;
use super::record::{KernelText, Recording, record};
use crate::backend::{KvType, Limits};
use crate::conformance::{Case, cases, cases_of, check, large, programs};
use crate::ops::{Attention, Op};
use crate::program::{MatId, Program, ProgramBuilder};

fn recorded(program: &Program, limits: &Limits) -> Recording {
    recorded_for(program, limits, &Traits::LEAST)
}

fn recorded_for(program: &Program, limits: &Limits, traits: &Traits) -> Recording {
    record(program, limits, traits).expect("everything fits")
}

/// Devices of every class of kernels.
fn classes() -> [Traits; 4] {
    let in_step = Traits { subgroup: Some((32, 32)), tuning: Tuning::GPU, ..Traits::LEAST };
    let tuning = Tuning { prefetch: false, unrolled: 2, ..Tuning::GPU };
    let rounded = Traits { rounded: true, tuning, ..in_step };
    let small = Traits { subgroup: Some((8, 8)), tuning: Tuning::SOFTWARE, ..rounded };
    [Traits::LEAST, in_step, rounded, small]
}

/// Parses and validates a kernel and writes it as MSL and SPIR-V; gives the bytes that the lanes of a workgroup share.
fn translate(text: &str) -> Result<usize, String> {
    use naga::back::{msl, spv};
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    // Halves as they are packed in words all devices have; of the rest a kernel says what it uses.
    use naga::valid::Capabilities;
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32 | Capabilities::SUBGROUP;
    capabilities.set(Capabilities::SHADER_FLOAT16, text.contains("enable f16;"));
    let has_matrices = text.contains("enable wgpu_cooperative_matrix;");
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, has_matrices);
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
    validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
    validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(text))?;
    let options =
        msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..msl::Options::default() };
    let (metal, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .map_err(|e| format!("MSL: {e}"))?;
    assert!(metal.contains("kernel void"));
    // Lanes in step came with 1.3.
    let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
    let words = spv::write_vec(&module, &info, &options, None).map_err(|e| format!("SPIR-V: {e}"))?;
    assert_eq!(words[0], 0x0723_0203, "SPIR-V begins with its number");
    let mut sizes = naga::proc::Layouter::default();
    sizes.update(module.to_ctx()).map_err(|e| e.to_string())?;
    let of_entry = info.get_entry_point(0);
    let is_shared = |handle: naga::Handle<naga::GlobalVariable>, variable: &naga::GlobalVariable| {
        variable.space == naga::AddressSpace::WorkGroup && !of_entry[handle].is_empty()
    };
    let shared = module.global_variables.iter().filter(|&(handle, variable)| is_shared(handle, variable));
    Ok(shared.map(|(_, variable)| sizes[variable.ty].size as usize).sum())
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

/// Calls `check` with every kernel that devices with these traits, who take turns, get for the suite, once.
fn each_kernel(traits: &[Traits], check: impl Fn(&Case, &KernelText)) -> usize {
    let mut seen = HashSet::new();
    for (i, case) in cases().iter().enumerate() {
        // Every op has several cases of a type, so each of the devices meets all types.
        let traits = traits[i % traits.len()];
        for kernel in recorded_for(&case.program, &case.limits, &traits).kernels {
            if seen.insert(kernel.text.clone()) {
                check(case, &kernel);
            }
        }
    }
    seen.len()
}

/// Attention alone, of one layer.
fn attention(heads: usize, kv_heads: usize, head_dim: usize) -> Program {
    let mut b = ProgramBuilder::new();
    let qkv = b.buffer("qkv", (heads + 2 * kv_heads) * head_dim);
    let out = b.buffer("out", heads * head_dim);
    let kv = b.kv_layer(kv_heads, head_dim);
    b.push(Attention { qkv, heads, scale: 0.1, window: None, soft_cap: Some(2.0), sinks: None, kv, out });
    let logits = b.logits_buffer(1);
    b.finish(logits, 1)
}

/// Attention stages as much as there is room for, and takes fewer rows and heads together where there is little.
#[test]
fn attention_keeps_to_what_lanes_may_share() {
    for (heads, kv_heads, head_dim) in [(32, 8, 128), (14, 2, 64), (4, 1, 256), (5, 1, 80), (3, 1, 10)] {
        for kv_type in [KvType::F16, KvType::F32] {
            for shared in [16 << 10, 32 << 10, 48 << 10] {
                let traits = Traits { workgroup_memory: shared, ..Traits::LEAST };
                let limits = Limits { blocks: 40, ..limits(kv_type) };
                let recording = record(&attention(heads, kv_heads, head_dim), &limits, &traits).unwrap();
                for kernel in recording.kernels.iter().filter(|k| k.label.starts_with("attention")) {
                    let bytes = translate(&kernel.text).unwrap();
                    assert!(
                        bytes <= shared,
                        "{} of {heads}:{kv_heads}x{head_dim}: {bytes} of {shared}",
                        kernel.label
                    );
                }
            }
        }
    }
}

/// Kernels bind as much besides the step's two as a browser's device lets them at least, and their lanes share no more than the
/// device has for that.
fn all_translate(traits: &[Traits]) {
    let most = traits.iter().map(|traits| traits.workgroup_memory).max().unwrap_or(0);
    let count = each_kernel(traits, |case, kernel| {
        assert!(kernel.is_written.len() + 2 <= 8, "{} has {}", kernel.label, kernel.is_written.len());
        match translate(&kernel.text) {
            Ok(bytes) => assert!(bytes <= most, "{}, {} shares {bytes} bytes", case.name, kernel.label),
            Err(why) => panic!("{}, {}: {why}", case.name, kernel.label),
        }
    });
    assert!(count > 100, "only {count} kernels");
}

#[test]
fn every_kernel_is_valid_and_translates() {
    all_translate(&[Traits::LEAST]);
    all_translate(&classes()[1..]);
}

#[test]
fn those_for_more_rows_are_valid_and_translate() {
    all_translate(&[Traits { several_from: 0, many_from: 8, ..Traits::LEAST }]);
}

#[test]
fn those_with_halves_and_matrices_are_valid_and_translate() {
    let with_halves = Traits { matrices: false, large_tiles: false, ..MOST };
    let with_more_rows = |traits| Traits { several_from: 0, many_from: 8, ..traits };
    all_translate(&[with_more_rows(MOST)]);
    all_translate(&[with_more_rows(with_halves)]);
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
    const MOST: usize = 20_000;
    let few = Limits { rows: 1, logit_rows: 1, blocks: 1, ..limits(KvType::F16) };
    let is_large = |program: &Program| program.matrices().iter().any(|matrix| matrix.bytes() > MOST);
    let mut drawn = (0..100).map(|seed| programs::draw(programs::Kind::Dense, seed));
    let program = drawn.find(is_large).expect("one of them has a large matrix");
    let whole = recorded(&program, &limits(KvType::F16));
    let small = Traits { max_binding: MOST, ..Traits::LEAST };
    let split = record(&program, &few, &small);
    let split = split.expect("rows are small");
    assert!(split.buffers.iter().all(|b| b.bytes <= MOST || b.bytes == split.buffers[0].bytes));
    assert!(split.buffers.len() > whole.buffers.len());
    assert_eq!(split.memory().weights, whole.memory().weights);
}

/// With bindings so small that matrices lie in several buffers, all kernels make what they make of whole ones.
#[test]
fn split_matrices_are_multiplied() {
    const BINDING: usize = 68 << 10;
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

/// How many kinds of rows of a matrix there are that many rows of a batch must be made ready for, once for all of a kind: as
/// codes for quantized ones where a device rounds, normed if there is a norm.
fn made_ready(program: &Program, traits: &Traits, id: MatId, is_normed: bool, at: usize) -> usize {
    let matrix = program.matrix(id);
    let kinds: BTreeSet<(bool, bool)> = matrix
        .segments
        .iter()
        .map(|s| s.dtype().is_quantized())
        .map(|is_quantized| (is_quantized, is_quantized && traits.rounded))
        .collect();
    let is_ready =
        |is_rounded: bool| !is_normed && !is_rounded && matrix.n_in.is_multiple_of(8) && at.is_multiple_of(4);
    kinds.into_iter().filter(|&(_, is_rounded)| !is_ready(is_rounded)).count()
}

/// What ARCHITECTURE.md says of an op's dispatches: each waits for the one before it, so their number decides how fast one row
/// is. With many rows some are made ready first.
fn said(program: &Program, before: Option<&Op>, op: &Op, traits: &Traits, is_many: bool) -> usize {
    let is_in_step = traits.in_step().is_some();
    let product = |id, is_normed, at| {
        let more = if is_in_step && is_many { made_ready(program, traits, id, is_normed, at) } else { 0 };
        1 + borders(program, id).len() + more
    };
    // One dispatch is enough for several matrices unless activations are rounded for one of them.
    let together = |mut ids: Vec<MatId>| {
        ids.retain(|&id| traits.rounded && program.matrix(id).segments[0].dtype().is_quantized());
        ids.is_empty()
    };
    let grouped = |ids: Vec<(MatId, usize)>| match together(ids.iter().map(|&(id, _)| id).collect()) {
        true => 1,
        false => ids.iter().map(|&(id, at)| product(id, false, at)).sum(),
    };
    let gate = |id| usize::from(!borders(program, id).is_empty());
    match op {
        Op::Embed(op) => 1 + borders(program, op.table).len(),
        Op::NormLinear(op) => {
            let gate = if op.activation.is_gated() { gate(op.weight) } else { 0 };
            product(op.weight, op.norm.is_some(), 0) + gate
        }
        Op::LinearResidual(op) => product(op.weight, false, 0) + usize::from(op.post_norm.is_some()),
        Op::MoeRoute(op) if is_in_step => 1 + product(op.router, true, 0),
        Op::MoeGateUp(op) => {
            let (gates, ups) = (borders(program, op.gate), borders(program, op.up));
            let is_quantized = |id, row| program.matrix(id).dtype_of_row(row).is_quantized();
            let mut rows = 0..program.matrix(op.gate).n_out;
            match rows.any(|row| is_quantized(op.gate, row) != is_quantized(op.up, row)) {
                // Of each by themselves, and then the gate.
                true if is_in_step => 1 + gates.len() + 1 + ups.len() + 1,
                _ => 1 + (&gates | &ups).len(),
            }
        }
        Op::MoeDown(op) => 1 + borders(program, op.down).len(),
        Op::GroupedLinear(op) => grouped(op.groups.iter().map(|&(at, id)| (id, at)).collect()),
        Op::Lora(op) => {
            let ups = grouped(op.pairs.iter().map(|pair| (pair.up, 0)).collect());
            let downs = op.pairs.iter().map(|pair| pair.down);
            match before {
                // All downs are part of the dispatch before, where that reads the same rows.
                Some(Op::GroupedLinear(before))
                    if before.x == op.x
                        && together(before.groups.iter().map(|&(_, id)| id).chain(downs).collect()) =>
                {
                    ups
                }
                _ => grouped(op.pairs.iter().map(|pair| (pair.down, pair.x_at)).collect()) + ups,
            }
        }
        Op::ChannelMix(op) => 1 + product(op.weight, false, 0),
        Op::Head(op) => product(op.weight, true, 0),
        _ => 1,
    }
}

#[test]
fn ops_take_as_many_dispatches_as_is_said() {
    for kind in [programs::Kind::Dense, programs::Kind::Experts, programs::Kind::Recurrent] {
        for program in (0..12).map(|seed| programs::draw(kind, seed)) {
            for (traits, rows) in classes().iter().flat_map(|traits| [(traits, 1), (traits, 4)]) {
                let recording = recorded_for(&program, &limits(KvType::F16), traits);
                for (i, op) in program.ops().iter().enumerate() {
                    let before = i.checked_sub(1).map(|i| &program.ops()[i]);
                    let count = recording.dispatches_of(program.ops().len(), i, rows);
                    let said = said(&program, before, op, traits, rows > 1);
                    assert_eq!(count, said, "{kind:?}, {}, {rows} rows, {traits:?}", op.name());
                }
            }
        }
    }
}

/// The shares of a layer of the commonest models that one row takes: no more than on any device, but for the router's scores.
#[test]
fn one_row_takes_no_more_dispatches_in_step() {
    let [least, in_step, rounded, _] = classes();
    for seed in 0..4 {
        let program = programs::draw(programs::Kind::Dense, seed);
        let count = |traits| {
            let recording = recorded_for(&program, &limits(KvType::F16), traits);
            recording.dispatches.iter().filter(|d| d.rows.contains(&1)).count()
        };
        assert_eq!(count(&in_step), count(&least));
        assert_eq!(count(&rounded), count(&least));
    }
}
