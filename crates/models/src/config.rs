//! A model's configuration, whether it stands in a GGUF file's metadata or in config.json.

use exotherm_weights::{Checkpoint, Format};
use serde_json::Value;

use crate::ModelError;

/// No count in a configuration is larger; products of two then fit in 64 bits.
const MOST: u64 = 1 << 24;

/// Values are asked for by the GGUF key without its architecture and by the names that config.json may use.
pub(crate) struct Config<'a> {
    checkpoint: &'a Checkpoint,
    arch: String,
    json: Option<&'a Value>,
}

impl<'a> Config<'a> {
    pub fn new(checkpoint: &'a Checkpoint) -> Config<'a> {
        let arch = checkpoint.metadata().str("general.architecture").unwrap_or_default().to_string();
        // Multimodal models keep the text model's configuration one level down.
        let json = checkpoint.config().map(|c| c.get("text_config").unwrap_or(c));
        Config { checkpoint, arch, json }
    }

    pub fn is_gguf(&self) -> bool {
        self.checkpoint.format() == Format::Gguf
    }

    fn gguf_key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    /// The first of the names that config.json has a value for; a name may be a path `a.b`.
    pub fn json(&self, names: &[&str]) -> Option<&'a Value> {
        let at = |name: &&str| name.split('.').try_fold(self.json?, |v, part| v.get(part));
        names.iter().find_map(at).filter(|v| !v.is_null())
    }

    fn shown(&self, key: &str, names: &[&str]) -> String {
        if self.is_gguf() { self.gguf_key(key) } else { names.first().copied().unwrap_or(key).to_string() }
    }

    fn missing(&self, key: &str, names: &[&str]) -> ModelError {
        let place = if self.is_gguf() { "the file's metadata" } else { "config.json" };
        ModelError::MissingKey { key: self.shown(key, names), place }
    }

    /// A count of at least 1, if it is there.
    pub fn try_count(&self, key: &str, names: &[&str]) -> Result<Option<usize>, ModelError> {
        Ok(self.try_count_or_zero(key, names)?.filter(|&n| n > 0))
    }

    /// A count that may be 0, if it is there.
    pub fn try_count_or_zero(&self, key: &str, names: &[&str]) -> Result<Option<usize>, ModelError> {
        let bad = |found: String| {
            ModelError::bad(
                &self.shown(key, names),
                found,
                format!("a whole number up to {MOST} is expected"),
            )
        };
        let found = if self.is_gguf() {
            let Some(value) = self.checkpoint.metadata().get(&self.gguf_key(key)) else { return Ok(None) };
            // Some files give a count per layer; layers that differ are refused, not guessed at.
            match value.as_array() {
                Some(array) => {
                    let mut values = array.iter().map(|v| v.as_u64());
                    let first = values.next().flatten();
                    if first.is_none() || !values.all(|v| v == first) {
                        return Err(bad("a list of different values".into()));
                    }
                    first
                }
                None => value.as_u64(),
            }
            .ok_or_else(|| bad("no number".into()))?
        } else {
            let Some(value) = self.json(names) else { return Ok(None) };
            value.as_u64().ok_or_else(|| bad(value.to_string()))?
        };
        if found > MOST {
            return Err(bad(found.to_string()));
        }
        Ok(Some(found as usize))
    }

    pub fn count(&self, key: &str, names: &[&str]) -> Result<usize, ModelError> {
        match self.try_count_or_zero(key, names)? {
            Some(0) => Err(ModelError::bad(&self.shown(key, names), 0, "at least 1 is expected")),
            Some(n) => Ok(n),
            None => Err(self.missing(key, names)),
        }
    }

    pub fn try_float(&self, key: &str, names: &[&str]) -> Result<Option<f32>, ModelError> {
        let found = if self.is_gguf() {
            self.checkpoint.metadata().f32(&self.gguf_key(key))
        } else {
            self.json(names).and_then(Value::as_f64).map(|v| v as f32)
        };
        match found {
            Some(v) if !v.is_finite() => {
                Err(ModelError::bad(&self.shown(key, names), v, "a finite number is expected"))
            }
            found => Ok(found),
        }
    }

    pub fn float(&self, key: &str, names: &[&str]) -> Result<f32, ModelError> {
        self.try_float(key, names)?.ok_or_else(|| self.missing(key, names))
    }

    /// A number that must be above zero, such as an epsilon or a rope base.
    pub fn positive(&self, key: &str, names: &[&str], default: Option<f32>) -> Result<f32, ModelError> {
        let found = match default {
            Some(default) => self.try_float(key, names)?.unwrap_or(default),
            None => self.float(key, names)?,
        };
        match found > 0.0 {
            true => Ok(found),
            false => Err(ModelError::bad(&self.shown(key, names), found, "a number above zero is expected")),
        }
    }

    /// A flag of config.json (GGUF files have none that matter here).
    pub fn json_flag(&self, name: &str, default: bool) -> bool {
        self.json(&[name]).and_then(Value::as_bool).unwrap_or(default)
    }

    /// Whether a layer is flagged in a GGUF file's list of flags; `None` if there is no such list.
    pub fn gguf_flag_of_layer(&self, key: &str, layer: usize) -> Option<bool> {
        let metadata = self.checkpoint.metadata();
        metadata.array(&self.gguf_key(key))?;
        metadata.bool_at(&self.gguf_key(key), layer)
    }

    pub fn gguf_str(&self, key: &str) -> Option<&'a str> {
        self.checkpoint.metadata().str(&self.gguf_key(key))
    }

    /// Refuses an activation other than those of the family.
    pub fn check_activation(&self, names: &[&str], allowed: &[&str]) -> Result<(), ModelError> {
        match self.json(names).and_then(Value::as_str) {
            Some(found) if !allowed.contains(&found) => {
                Err(ModelError::bad(names[0], found, format!("this family has {}", allowed.join(" or "))))
            }
            _ => Ok(()),
        }
    }
}
