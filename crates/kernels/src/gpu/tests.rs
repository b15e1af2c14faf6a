//! What can be known of kernels without a device.

use std::collections::HashSet;

use super::device::Traits;
use super::record::{Recording, record};
use crate::backend::{KvType, Limits};
use crate::conformance::{cases, programs};
use crate::program::Program;

/// As little as any device has.
const TRAITS: Traits = Traits { max_binding: 128 << 20 };

fn recorded(program: &Program, limits: &Limits) -> Recording {
    record(program, limits, &TRAITS).expect("everything fits")
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
    let program = programs::draw(programs::Kind::Dense, 1);
    let whole = recorded(&program, &limits(KvType::F16));
    let small = Traits { max_binding: 4096 };
    let split =
        record(&program, &Limits { rows: 1, logit_rows: 1, blocks: 1, ..limits(KvType::F16) }, &small);
    let split = split.expect("rows are small");
    assert!(split.buffers.iter().all(|b| b.bytes <= 4096 || b.bytes == split.buffers[0].bytes));
    assert!(split.buffers.len() > whole.buffers.len());
    assert_eq!(split.memory().weights, whole.memory().weights);
}

/// Dispatches of each op kind of a program, in the order in which the kinds first come.
fn dispatches(program: &Program) -> Vec<(&'static str, usize)> {
    let recording = recorded(program, &limits(KvType::F16));
    let mut counts: Vec<(&'static str, usize)> = Vec::new();
    for (i, op) in program.ops().iter().enumerate() {
        let count = recording.dispatches.iter().filter(|dispatch| dispatch.op == i).count();
        match counts.iter_mut().find(|(name, _)| *name == op.name()) {
            // What matrices of several types or a norm of outputs add is not counted.
            Some((_, least)) => *least = count.min(*least),
            None => counts.push((op.name(), count)),
        }
    }
    counts
}

/// The table in ARCHITECTURE.md: each dispatch waits for the one before it, and so their number decides how fast one row is.
#[test]
fn ops_take_these_dispatches() {
    let least = |kind| {
        let mut all: Vec<(&str, usize)> = Vec::new();
        for (name, count) in (0..12).flat_map(|seed| dispatches(&programs::draw(kind, seed))) {
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some((_, least)) => *least = count.min(*least),
                None => all.push((name, count)),
            }
        }
        all
    };
    for (name, count) in [programs::Kind::Dense, programs::Kind::Experts].into_iter().flat_map(least) {
        assert_eq!(count, 1, "{name}");
    }
    for (name, count) in least(programs::Kind::Recurrent) {
        let expected = match name {
            "grouped_linear" => 3,
            // Four pairs but in the first layer, which has three.
            "lora" => 6,
            "channel_mix" => 2,
            _ => 1,
        };
        assert_eq!(count, expected, "{name}");
    }
}
