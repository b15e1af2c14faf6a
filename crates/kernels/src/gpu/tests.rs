//! What can be known of kernels without a device.

use std::collections::{BTreeSet, HashSet};

use super::device::Traits;
use super::record::{Recording, record};
use crate::backend::{KvType, Limits};
use crate::conformance::{cases, programs};
use crate::ops::Op;
use crate::program::{MatId, Program};

fn recorded(program: &Program, limits: &Limits) -> Recording {
    record(program, limits, &Traits::LEAST).expect("everything fits")
}

/// Parses and validates a kernel and writes it as MSL and SPIR-V.
fn translate(text: &str) -> Result<(), String> {
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
    Ok(())
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
