//! What can be known of kernels without a device.

use std::collections::{BTreeSet, HashSet};

use super::device::Traits;
use super::record::{Recording, record};
use crate::backend::{KvType, Limits};
use crate::conformance::{cases, programs};
use crate::ops::{Attention, Op};
use crate::program::{MatId, Program, ProgramBuilder};

fn recorded(program: &Program, limits: &Limits) -> Recording {
    record(program, limits, &Traits::LEAST).expect("everything fits")
}

/// Parses and validates a kernel and writes it as MSL and SPIR-V; gives the bytes that the lanes of a workgroup share.
fn translate(text: &str) -> Result<usize, String> {
    use naga::back::{msl, spv};
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    // Halves as they are packed in words, which all devices have.
    let capabilities = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;
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
    let mut sizes = naga::proc::Layouter::default();
    sizes.update(module.to_ctx()).map_err(|e| e.to_string())?;
    let of_entry = info.get_entry_point(0);
    let is_shared = |handle: naga::Handle<naga::GlobalVariable>, variable: &naga::GlobalVariable| {
        variable.space == naga::AddressSpace::WorkGroup && !of_entry[handle].is_empty()
    };
    let shared = module.global_variables.iter().filter(|&(handle, variable)| is_shared(handle, variable));
    Ok(shared.map(|(_, variable)| sizes[variable.ty].size as usize).sum())
}

#[test]
fn every_kernel_is_valid_and_translates() {
    let mut seen = HashSet::new();
    for case in cases() {
        for kernel in recorded(&case.program, &case.limits).kernels {
            if seen.insert(kernel.text.clone())
                && let Err(why) = translate(&kernel.text)
            {
                panic!("{}, {}: {why}", case.name, kernel.label);
            }
        }
    }
    assert!(seen.len() > 100, "only {} kernels", seen.len());
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
                let traits = Traits { shared, ..Traits::LEAST };
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

/// Bindings that a kernel has besides the step's two: as many as a browser's device lets it have at least.
#[test]
fn no_kernel_has_too_many_bindings() {
    for case in cases() {
        for kernel in recorded(&case.program, &case.limits).kernels {
            assert!(kernel.is_written.len() + 2 <= 8, "{} has {}", kernel.label, kernel.is_written.len());
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
fn said(program: &Program, before: Option<&Op>, op: &Op) -> usize {
    let runs = |id| 1 + borders(program, id).len();
    match op {
        Op::Embed(op) => runs(op.table),
        Op::NormLinear(op) => runs(op.weight) + usize::from(op.activation.is_gated() && runs(op.weight) > 1),
        Op::LinearResidual(op) => runs(op.weight) + usize::from(op.post_norm.is_some()),
        Op::MoeGateUp(op) => 1 + (&borders(program, op.gate) | &borders(program, op.up)).len(),
        Op::MoeDown(op) => runs(op.down),
        Op::GroupedLinear(_) => 1,
        // All downs are part of the dispatch before, where that reads the same rows; all ups are one.
        Op::Lora(op) => match before {
            Some(Op::GroupedLinear(before)) if before.x == op.x => 1,
            _ => 2,
        },
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
                let before = i.checked_sub(1).map(|i| &program.ops()[i]);
                let count = recording.one_row(program.ops().len(), i);
                assert_eq!(count, said(&program, before, op), "{kind:?}, {}", op.name());
            }
        }
    }
}
