//! `exotherm tokenize`: text to token ids and back.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use exotherm_tokenizer::{Specials, Tokenizer};
use serde_json::{Value, json};

use crate::Context;
use crate::args::Numbers;
use crate::model;
use crate::output::{self, Out};

/// Turn text into token ids, or ids into text
///
/// Control tokens that are written out in the text, such as <|im_start|>, are read as those tokens. Without TEXT and
/// --file the text is read from stdin. A GGUF file that has only a vocabulary is enough.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name, a path or hf:org/repo[/file]
    #[arg(value_name = "MODEL")]
    model: String,
    /// The text; one that begins with a hyphen goes behind `--`
    #[arg(value_name = "TEXT", allow_negative_numbers = true)]
    text: Option<String>,
    /// Take the text from this file, byte for byte
    #[arg(long, value_name = "F", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Add no BOS and EOS; with --decode, leave control tokens out of the text
    #[arg(long)]
    no_special: bool,
    /// Read control tokens that are written out in the text as plain text
    #[arg(long)]
    no_parse_special: bool,
    /// The other way: print the text of these ids, as they are, without a newline at the end
    #[arg(long, value_name = "IDS", conflicts_with_all = ["text", "file", "no_parse_special"])]
    decode: Option<Numbers<u32>>,
    /// Print one JSON object: ids and pieces, with --decode also text
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm tokenize smollm2 \"Hello, world\"
  exotherm tokenize vocab.gguf --file book.txt --no-special --json
  exotherm tokenize smollm2 --decode 19556,28,905";

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    let checkpoint = model::open(cx, &args.model)?;
    let tokenizer = model::need_tokenizer(&checkpoint)?;
    if let Some(Numbers(ids)) = &args.decode {
        return decode(args, &tokenizer, ids);
    }
    let text = match (&args.text, &args.file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(file)) => fs::read(file).with_context(|| format!("cannot read {}", file.display()))?,
        (None, None) => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read the text from stdin")?;
            bytes
        }
    };
    let specials = Specials { add: !args.no_special, parse: !args.no_parse_special };
    let ids = tokenizer.encode_bytes(&text, specials)?;
    if args.json {
        return output::json(&json!({ "ids": ids, "pieces": pieces(&tokenizer, &ids) }));
    }
    let rows: Vec<Vec<String>> =
        ids.iter().map(|&id| vec![id.to_string(), format!("{:?}", piece(&tokenizer, id))]).collect();
    match rows.is_empty() {
        true => Ok(()),
        false => output::text(output::table(&rows)),
    }
}

fn decode(args: &Args, tokenizer: &Tokenizer, ids: &[u32]) -> Result<()> {
    let bytes = tokenizer.decode_bytes(ids, !args.no_special)?;
    if args.json {
        let text = String::from_utf8_lossy(&bytes);
        return output::json(&json!({ "ids": ids, "pieces": pieces(tokenizer, ids), "text": text }));
    }
    let mut out = Out::new();
    out.bytes(&bytes)?;
    out.flush()
}

/// A token's text, with U+FFFD for bytes that are no whole character.
fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(tokenizer.piece(id).unwrap_or_default()).into_owned()
}

fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<Value> {
    ids.iter().map(|&id| piece(tokenizer, id).into()).collect()
}
