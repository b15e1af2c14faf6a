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
    /// A GGUF file says everything itself: a config.json beside it may belong to another model.
    pub fn new(checkpoint: &'a Checkpoint) -> Config<'a> {
        let arch = checkpoint.metadata().str("general.architecture").unwrap_or_default().to_string();
        let json = checkpoint.config().filter(|_| checkpoint.format() == Format::Safetensors);
        // Multimodal models keep the text model's configuration one level down.
        let text = json.and_then(|c| c.get("text_config")).filter(|c| c.is_object());
        Config { checkpoint, arch, json: text.or(json) }
    }

    pub fn is_gguf(&self) -> bool {
        self.checkpoint.format() == Format::Gguf
    }

    fn gguf_key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    /// The first of the names that config.json has a value for; a name may be a path `a.b`.
    pub fn json(&self, names: &[&str]) -> Option<&'a Value> {
        let at = |name: &str| name.split('.').try_fold(self.json?, |v, part| v.get(part));
        names.iter().find_map(|name| at(name).filter(|v| !v.is_null()))
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
        match self.try_count_or_zero(key, names)? {
            Some(0) => Err(ModelError::bad(&self.shown(key, names), 0, "at least 1 is expected")),
            found => Ok(found),
        }
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
        self.try_count(key, names)?.ok_or_else(|| self.missing(key, names))
    }

    pub fn try_float(&self, key: &str, names: &[&str]) -> Result<Option<f32>, ModelError> {
        let bad =
            |found: String| ModelError::bad(&self.shown(key, names), found, "a finite number is expected");
        let found = if self.is_gguf() {
            let Some(value) = self.checkpoint.metadata().get(&self.gguf_key(key)) else { return Ok(None) };
            value.as_f32().ok_or_else(|| bad("of another type".into()))?
        } else {
            let Some(value) = self.json(names) else { return Ok(None) };
            value.as_f64().ok_or_else(|| bad(value.to_string()))? as f32
        };
        match found.is_finite() {
            true => Ok(Some(found)),
            false => Err(bad(found.to_string())),
        }
    }

    /// A number that must be above zero, such as an epsilon or a rope base; without a default it must be there.
    pub fn positive(&self, key: &str, names: &[&str], default: Option<f32>) -> Result<f32, ModelError> {
        let found = self.try_float(key, names)?.or(default).ok_or_else(|| self.missing(key, names))?;
        self.above_zero(key, names, found)
    }

    /// Like `positive`, where it may be absent.
    pub fn try_positive(&self, key: &str, names: &[&str]) -> Result<Option<f32>, ModelError> {
        self.try_float(key, names)?.map(|found| self.above_zero(key, names, found)).transpose()
    }

    fn above_zero(&self, key: &str, names: &[&str], found: f32) -> Result<f32, ModelError> {
        match found > 0.0 {
            true => Ok(found),
            false => Err(ModelError::bad(&self.shown(key, names), found, "a number above zero is expected")),
        }
    }

    /// A flag of config.json (GGUF files have none that matter here).
    pub fn json_flag(&self, name: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.json(&[name]) else { return Ok(default) };
        value.as_bool().ok_or_else(|| ModelError::bad(name, value, "true or false is expected"))
    }

    /// A text of config.json.
    pub fn json_text(&self, names: &[&str]) -> Result<Option<&'a str>, ModelError> {
        let Some(value) = self.json(names) else { return Ok(None) };
        let text = value.as_str().ok_or_else(|| ModelError::bad(names[0], value, "a text is expected"))?;
        Ok(Some(text))
    }

    /// A list of config.json.
    pub fn json_list(&self, name: &str) -> Result<Option<&'a Vec<Value>>, ModelError> {
        let Some(value) = self.json(&[name]) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| ModelError::bad(name, value, "a list is expected"))?;
        Ok(Some(list))
    }

    /// Which layers see a window, if config.json says it layer by layer.
    pub fn sliding_layers(&self, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        const NAME: &str = "layer_types";
        let Some(kinds) = self.json_list(NAME)? else { return Ok(None) };
        if kinds.len() != layers {
            return Err(ModelError::bad(
                NAME,
                format!("a list of {}", kinds.len()),
                format!("there are {layers} layers"),
            ));
        }
        let slides = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(ModelError::bad(NAME, kind, "there are full_attention and sliding_attention")),
        };
        kinds.iter().map(slides).collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// Whether a layer is flagged in a GGUF file's list of flags; `None` if there is no such list.
    pub fn gguf_flag_of_layer(&self, key: &str, layer: usize) -> Option<bool> {
        let metadata = self.checkpoint.metadata();
        metadata.array(&self.gguf_key(key))?;
        metadata.bool_at(&self.gguf_key(key), layer)
    }

    /// A text of a GGUF file's metadata.
    pub fn gguf_text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        let key = self.gguf_key(key);
        match (self.checkpoint.metadata().str(&key), self.checkpoint.metadata().contains(&key)) {
            (None, true) => Err(ModelError::bad(&key, "of another type", "a text is expected")),
            (text, _) => Ok(text),
        }
    }

    /// Refuses an activation other than those of the family.
    pub fn check_activation(&self, names: &[&str], allowed: &[&str]) -> Result<(), ModelError> {
        match self.json_text(names)? {
            Some(found) if !allowed.contains(&found) => {
                Err(ModelError::bad(names[0], found, format!("this family has {}", allowed.join(" or "))))
            }
            _ => Ok(()),
        }
    }
}
