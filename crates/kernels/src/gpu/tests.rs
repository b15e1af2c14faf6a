//! What can be known of kernels without a device.

use std::collections::{BTreeSet, HashSet};

use super::device::Traits;
use super::in_step::Tuning;
use super::record::{Recording, record};
use crate::backend::{KvType, Limits};
use crate::conformance::{cases, programs};
use crate::ops::Op;
use crate::program::{MatId, Program};

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

/// Parses and validates a kernel and writes it as MSL and SPIR-V.
fn translate(text: &str) -> Result<(), String> {
    use naga::back::{msl, spv};
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    // Halves as they are packed in words, which all devices have.
    let capabilities =
        naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32 | naga::valid::Capabilities::SUBGROUP;
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
    Ok(())
}

#[test]
fn every_kernel_is_valid_and_translates() {
    let mut seen = HashSet::new();
    for (i, case) in cases().iter().enumerate() {
        // Every op has several cases of a type, so every class meets all types.
        for kernel in [0, 1 + i % 3]
            .iter()
            .flat_map(|&class| recorded_for(&case.program, &case.limits, &classes()[class]).kernels)
        {
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
    let cases = cases();
    for (case, traits) in cases.iter().flat_map(|case| classes().map(|traits| (case, traits))) {
        for kernel in recorded_for(&case.program, &case.limits, &traits).kernels {
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
fn said(program: &Program, op: &Op, traits: &Traits, is_many: bool) -> usize {
    let is_in_step = traits.in_step().is_some();
    let product = |id, is_normed, at| {
        let more = if is_in_step && is_many { made_ready(program, traits, id, is_normed, at) } else { 0 };
        1 + borders(program, id).len() + more
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
        Op::GroupedLinear(op) => op.groups.iter().map(|&(at, id)| product(id, false, at)).sum(),
        Op::Lora(op) => op
            .pairs
            .iter()
            .map(|pair| product(pair.down, false, pair.x_at) + product(pair.up, false, 0))
            .sum(),
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
                    let dispatches = recording.dispatches.iter();
                    let count = dispatches.filter(|d| d.op == i && d.rows.contains(&rows)).count();
                    let said = said(&program, op, traits, rows > 1);
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
