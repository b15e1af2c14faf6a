//! `exotherm devices`: what there is to compute on.

use anyhow::Result;
use serde_json::json;

use crate::{machine, output};

/// List what there is to compute on
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm devices
  exotherm devices --json";

pub fn run(args: &Args) -> Result<()> {
    let (name, memory) = (machine::cpu_name(), machine::memory());
    let (cores, threads) = (machine::physical_cores(), machine::logical_cores());
    let sets = machine::instruction_sets();
    if args.json {
        return output::json(&json!({ "devices": [
            {
                "backend": "cpu",
                "name": name,
                "cores": cores,
                "hardware_threads": threads,
                "instruction_sets": sets,
                "memory_bytes": memory.map(|m| m.0),
                "memory_available_bytes": memory.map(|m| m.1),
            },
            { "backend": "reference", "name": "scalar, for comparison" },
        ]}));
    }
    let name = name.unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH));
    let memory = memory.map_or(String::new(), |(total, available)| {
        format!("\n           memory {}, {} available", output::size(total), output::size(available))
    });
    output::text(format_args!(
        "cpu        {name}\n           {cores} cores, {threads} hardware threads; {}{memory}\n\
         reference  scalar and slow, the measure for the others",
        if sets.is_empty() { "no known vector instructions".to_string() } else { sets.join(" ") },
    ))
}
