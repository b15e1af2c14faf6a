//! `exotherm models`: the known names.

use anyhow::Result;
use exotherm_weights::store::{DEFAULT_MODEL, Entry, Store};
use serde_json::json;

use crate::output;

/// List the known models and which of them are here
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm models
  exotherm models --json

Models of the hub need no name here: hf:org/repo[/file] does.";

pub fn run(args: &Args) -> Result<()> {
    let store = Store::from_env();
    if args.json {
        let models: Vec<_> = store.catalog().iter().map(|entry| as_json(&store, entry)).collect();
        return output::json(
            &json!({ "store": store.root().ok().map(|root| root.display().to_string()), "models": models }),
        );
    }
    let mut rows = vec![["NAME", "SIZE", "HERE", "ABOUT"].map(String::from).to_vec()];
    for entry in store.catalog() {
        let here = if store.cached(entry).is_some() { "yes" } else { "no" };
        let default = if entry.name == DEFAULT_MODEL { " (the default)" } else { "" };
        rows.push(vec![
            entry.name.to_string(),
            output::size(entry.size_bytes),
            here.to_string(),
            format!("{}{default}", entry.about),
        ]);
    }
    let root = match store.root() {
        Ok(root) => root.display().to_string(),
        Err(error) => error.to_string(),
    };
    output::text(format_args!("{}\n\nstore: {root}", output::table(&rows)))
}

fn as_json(store: &Store, entry: &Entry) -> serde_json::Value {
    json!({
        "name": entry.name,
        "aliases": entry.aliases,
        "about": entry.about,
        "bytes": entry.size_bytes,
        "path": store.cached(entry).map(|path| path.display().to_string()),
        "default": entry.name == DEFAULT_MODEL,
    })
}
