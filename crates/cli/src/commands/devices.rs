//! `exotherm devices`: what there is to compute on, and how fast it is at most.

use anyhow::Result;
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::gpu::{GpuInfo, GpuKind};
use serde_json::{Value, json};

use crate::args::{IsaArg, ThreadArgs, seconds};
use crate::limits::{Limit, Limits, SECONDS};
use crate::output::note;
use crate::{machine, model, output};

/// List what there is to compute on
///
/// With --measure, how fast memory is read and how many operations on integers and floats the threads make at most:
/// the limits to which `exotherm profile` compares a model. They are kept for the processor, number of threads and
/// instruction level for which they were measured, and whether the machine was busy then. Measure on an idle machine. Of
/// what was measured before and now the larger figures are kept; --forget begins anew.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Measure this machine's limits and keep them
    #[arg(long)]
    measure: bool,
    /// Keep what is measured now, though larger figures are known
    #[arg(long, requires = "measure")]
    forget: bool,
    /// Seconds that each limit is measured for
    #[arg(long, value_name = "S", default_value_t = SECONDS, value_parser = seconds, requires = "measure")]
    seconds: f64,
    #[command(flatten)]
    threads: ThreadArgs,
    #[command(flatten)]
    isa: IsaArg,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm devices
  exotherm devices --measure
  exotherm devices --measure --forget
  exotherm devices --measure --threads 1 --isa avx2 --seconds 3
  exotherm devices --json";

pub fn run(args: &Args) -> Result<()> {
    let backend = model::cpu_backend(args.threads.count(), &args.isa)?;
    let limits = match args.measure {
        true => Some(measured(&backend, args.seconds, args.forget)?),
        false => Limits::cached(&backend),
    };
    match args.json {
        true => output::json(&as_json(&backend, limits, &GpuInfo::all())),
        false => output::text(as_text(&backend, limits, &GpuInfo::all())),
    }
}

/// Measures, and keeps of what was known before and is now the larger unless that is to be forgotten. Where there is no
/// place to keep them, they are good for this once.
pub fn measured(backend: &CpuBackend, seconds: f64, forget: bool) -> Result<Limits> {
    // Our own threads have no part in it yet.
    let load = machine::load_average().filter(|load| *load > machine::logical_cores() as f64);
    let now = Limits::measure(backend, seconds, load.is_some())?;
    note_if_busy(load, &now);
    let limits = match Limits::cached(backend).filter(|_| !forget) {
        Some(older) => now.or_larger(older),
        None => now,
    };
    let giga = |limit: Limit| limit.best / 1e9;
    for ((name, now, unit), (_, kept, _)) in
        now.each().zip(limits.each()).filter(|(now, kept)| now.1.best < kept.1.best)
    {
        note(format_args!(
            "note: {name}: {:.1} {unit} of an earlier time are kept, {:.1} were reached now (--forget begins anew)",
            giga(kept),
            giga(now),
        ));
    }
    if let Err(error) = limits.keep(backend) {
        note(format_args!("note: what was measured is not kept: {error:#}"));
    }
    Ok(limits)
}

/// Says so where others took a part of the machine while it was measured; `load` is that of a busy one.
fn note_if_busy(load: Option<f64>, limits: &Limits) {
    let cores = machine::logical_cores();
    if let Some(load) = load {
        note(format_args!("note: the machine is busy: its load is {load:.1} on {cores} hardware threads"));
    }
    let unsteady = limits.unsteady();
    if !unsteady.is_empty() {
        note(format_args!(
            "note: {}: half of the time it went much slower than at its best; the limit may be higher yet",
            unsteady.join(", ")
        ));
    }
}

fn as_json(backend: &CpuBackend, limits: Option<Limits>, gpus: &[GpuInfo]) -> Value {
    let memory = machine::memory();
    let cpu = json!({
            "backend": "cpu",
            "name": machine::cpu_name(),
            "cores": machine::physical_cores(),
            "hardware_threads": machine::logical_cores(),
            "instruction_sets": machine::instruction_sets(),
            "memory_bytes": memory.map(|m| m.0),
            "memory_available_bytes": memory.map(|m| m.1),
            "threads": backend.threads(),
            "isa": backend.level(),
            "isas": CpuBackend::levels().collect::<Vec<_>>(),
            "limits": limits.map(|limits| limits.as_json()),
    });
    let reference = json!({ "backend": "reference", "name": "scalar, for comparison" });
    let devices: Vec<Value> =
        [cpu].into_iter().chain(gpus.iter().map(gpu_as_json)).chain([reference]).collect();
    json!({ "devices": devices })
}

fn gpu_as_json(gpu: &GpuInfo) -> Value {
    let (fewest, most) = gpu.lanes_in_step();
    json!({
        "backend": "gpu",
        "name": gpu.name(),
        "kind": kind(gpu),
        "driver": gpu.driver(),
        "max_binding_bytes": gpu.max_binding(),
        "subgroup_lanes": [fewest, most],
        "lacks": gpu.lacks(),
    })
}

fn kind(gpu: &GpuInfo) -> &'static str {
    match gpu.kind() {
        GpuKind::Discrete => "discrete",
        GpuKind::Integrated => "integrated",
        GpuKind::Virtual => "virtual",
        GpuKind::Software => "software",
        GpuKind::Unknown => "unknown",
    }
}

fn gpu_as_text(gpu: &GpuInfo) -> String {
    let (fewest, most) = gpu.lanes_in_step();
    let lanes = if fewest == most { fewest.to_string() } else { format!("{fewest} to {most}") };
    let lacks = gpu.lacks();
    let lacks = if lacks.is_empty() { "nothing".into() } else { lacks.join(", ") };
    let lines = [
        format!("gpu        {}, {}", gpu.name(), kind(gpu)),
        gpu.driver(),
        format!(
            "{lanes} lanes in step; a kernel sees {} at once; lacks {lacks}",
            output::size(gpu.max_binding() as u64)
        ),
    ];
    lines.join("\n           ")
}

fn as_text(backend: &CpuBackend, limits: Option<Limits>, gpus: &[GpuInfo]) -> String {
    let name = machine::cpu_name().unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH));
    let sets = machine::instruction_sets();
    let sets = if sets.is_empty() { "no known vector instructions".to_string() } else { sets.join(" ") };
    let mut lines = vec![
        format!("cpu        {name}"),
        format!("{} cores, {} hardware threads; {sets}", machine::physical_cores(), machine::logical_cores()),
    ];
    if let Some((total, available)) = machine::memory() {
        lines.push(format!("memory {}, {} available", output::size(total), output::size(available)));
    }
    let levels: Vec<_> = CpuBackend::levels().collect();
    lines.push(format!("computes at {} (--isa {})", backend.level(), levels.join("|")));
    match limits {
        Some(limits) => {
            lines.push(format!(
                "limits of {} threads at {}, best (median)",
                backend.threads(),
                backend.level()
            ));
            for (what, limit, unit) in limits.each() {
                let (best, median) = (limit.best / 1e9, limit.median / 1e9);
                let busy = if limit.busy { ", measured on a busy machine" } else { "" };
                lines.push(format!("  {what:<13} {best:8.1} ({median:.1}) {unit}{busy}"));
            }
        }
        None => lines.push("limits not measured; `exotherm devices --measure` does it".into()),
    }
    let mut devices = vec![lines.join("\n           ")];
    match gpus {
        [] => devices.push("gpu        none: neither Vulkan nor Metal tells of one".into()),
        gpus => devices.extend(gpus.iter().map(gpu_as_text)),
    }
    devices.push("reference  scalar and slow, the measure for the others".into());
    devices.join("\n")
}
