//! A tokenizer from a model's folder.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;

use crate::json::Companions;
use crate::rwkv::{self, Rwkv};
use crate::specials::{SpecialTokens, Written};
use crate::{ChatTemplate, Engine, Tokenizer, TokenizerError};

/// The largest real tokenizer.json has 35 MB.
const TOKENIZER_LIMIT: u64 = 256 << 20;
const CONFIG_LIMIT: u64 = 64 << 20;

impl Tokenizer {
    /// Reads `tokenizer.json` or `rwkv_vocab_*.txt` and the configuration beside it. `None` if there is neither.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, TokenizerError> {
        let companions = companions(dir)?;
        if let Some(json) = read(&dir.join("tokenizer.json"), TOKENIZER_LIMIT)? {
            return Self::from_tokenizer_json(&json, &companions).map(Some);
        }
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(source) => return Err(TokenizerError::Read { path: dir.to_owned(), source }),
        };
        let mut vocabularies: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
                name.starts_with("rwkv_vocab_") && name.ends_with(".txt")
            })
            .collect();
        vocabularies.sort();
        let Some(path) = vocabularies.first() else { return Ok(None) };
        match read(path, TOKENIZER_LIMIT)? {
            Some(text) => Self::from_rwkv_vocab(&text, &companions).map(Some),
            None => Ok(None),
        }
    }

    /// Reads an RWKV world vocabulary (`rwkv_vocab_v20230424.txt`).
    pub fn from_rwkv_vocab(text: &[u8], companions: &Companions) -> Result<Self, TokenizerError> {
        let text = std::str::from_utf8(text)
            .map_err(|e| TokenizerError::Malformed(format!("the RWKV vocabulary is not UTF-8: {e}")))?;
        let pieces = rwkv::parse_vocab(text)?;
        // Id 0 is no line of the file: it ends a text, and nothing spells it.
        let no_written: [Written; 0] = [];
        let mut end_of_generation = companions.end_ids();
        if pieces.len() > 0 {
            end_of_generation.push(0);
        }
        end_of_generation.sort_unstable();
        end_of_generation.dedup();
        Ok(Tokenizer {
            engine: Engine::Rwkv(Rwkv::new(&pieces)),
            specials: SpecialTokens::new(&no_written)?,
            prefix: Vec::new(),
            suffix: Vec::new(),
            bos: None,
            eos: Some(0),
            end_of_generation,
            template: companions.chat_template.as_deref().map(ChatTemplate::compile),
            strips_first_space: false,
            guard: OnceLock::new(),
            pieces,
        })
    }
}

fn companions(dir: &Path) -> Result<Companions, TokenizerError> {
    let json = |name: &str| -> Result<Option<Value>, TokenizerError> {
        let path = dir.join(name);
        let Some(bytes) = read(&path, CONFIG_LIMIT)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|e| TokenizerError::Malformed(format!("{}: {e}", path.display())))
    };
    let path = dir.join("chat_template.jinja");
    let chat_template = match read(&path, CONFIG_LIMIT)? {
        Some(bytes) => Some(
            String::from_utf8(bytes)
                .map_err(|e| TokenizerError::Malformed(format!("{}: {e}", path.display())))?,
        ),
        None => json("chat_template.json")?
            .and_then(|value| value.get("chat_template")?.as_str().map(str::to_owned)),
    };
    Ok(Companions {
        tokenizer_config: json("tokenizer_config.json")?,
        special_tokens_map: json("special_tokens_map.json")?,
        generation_config: json("generation_config.json")?,
        model_config: json("config.json")?,
        chat_template,
    })
}

/// The contents of a file, `None` if it is not there. Never more than `limit` bytes, whatever the file claims.
fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, TokenizerError> {
    let failed = |source| TokenizerError::Read { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > limit {
        return Err(TokenizerError::TooLarge { path: path.to_owned(), bytes, limit });
    }
    let mut contents = Vec::with_capacity(bytes as usize);
    file.take(limit).read_to_end(&mut contents).map_err(failed)?;
    Ok(Some(contents))
}
