//! Rotary frequencies with the scalings that the families know.

use exotherm_weights::Checkpoint;
use serde_json::Value;

use crate::ModelError;
use crate::config::Config;

/// How a model's rotary frequencies are stretched.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Scaling {
    None,
    Linear { factor: f32 },
    Llama3 { factor: f32, low: f32, high: f32, original: f32 },
}

/// Base and scaling of one kind of layer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct RopeConfig {
    pub base: f32,
    pub scaling: Scaling,
    /// Rotated elements of a head.
    pub dims: usize,
}

impl RopeConfig {
    /// One frequency per rotated pair, scaling applied.
    pub fn inv_freq(&self) -> Vec<f32> {
        let pairs = self.dims / 2;
        let plain = |i: usize| f64::from(self.base).powf(-2.0 * i as f64 / self.dims as f64);
        (0..pairs).map(|i| self.scaled(plain(i)) as f32).collect()
    }

    fn scaled(&self, freq: f64) -> f64 {
        match self.scaling {
            Scaling::None => freq,
            Scaling::Linear { factor } => freq / f64::from(factor),
            Scaling::Llama3 { factor, low, high, original } => {
                let (factor, low, high) = (f64::from(factor), f64::from(low), f64::from(high));
                let turns = f64::from(original) * freq / (2.0 * std::f64::consts::PI);
                if turns < low {
                    return freq / factor;
                }
                if turns > high {
                    return freq;
                }
                let smooth = (turns - low) / (high - low);
                (1.0 - smooth) * freq / factor + smooth * freq
            }
        }
    }

    /// Reads base, dims and scaling. `kind` names the kind of layer where `rope_parameters` has one set per
    /// kind (`full_attention`, `sliding_attention`).
    pub fn read(
        config: &Config,
        head_dim: usize,
        kind: Option<&str>,
        default_base: f32,
    ) -> Result<RopeConfig, ModelError> {
        const PARAMETERS: &str = "rope_parameters";
        let per_kind = kind.map(|kind| format!("{PARAMETERS}.{kind}"));
        let own = per_kind.as_deref().and_then(|path| config.json(&[path]));
        // Sets per kind are no parameters themselves.
        let flat = config.json(&[PARAMETERS]).filter(|p| !p.as_object().is_some_and(holds_sets));
        let place = if own.is_some() { per_kind.as_deref().unwrap_or(PARAMETERS) } else { PARAMETERS };
        let names = [&format!("{place}.rope_theta"), "rope_theta"];
        // A GGUF file that is silent means the first models' base, whatever its family.
        let default_base = if config.is_gguf() { 10_000.0 } else { default_base };
        let base = config.positive("rope.freq_base", &names, Some(default_base))?;
        let scaling = match config.is_gguf() {
            true => gguf_scaling(config)?,
            false => json_scaling(own.or(flat).or_else(|| config.json(&["rope_scaling"])))?,
        };
        Ok(RopeConfig { base, scaling, dims: rotated_dims(config, place, head_dim)? })
    }
}

fn holds_sets(parameters: &serde_json::Map<String, Value>) -> bool {
    parameters.values().any(Value::is_object)
}

fn rotated_dims(config: &Config, place: &str, head_dim: usize) -> Result<usize, ModelError> {
    let dims = if config.is_gguf() {
        config.try_count("rope.dimension_count", &[])?.unwrap_or(head_dim)
    } else {
        let names = [&format!("{place}.partial_rotary_factor"), "partial_rotary_factor"];
        (head_dim as f32 * config.try_float("", &names)?.unwrap_or(1.0)) as usize
    };
    match dims > 0 && dims <= head_dim && dims.is_multiple_of(2) {
        true => Ok(dims),
        false => Err(ModelError::bad(
            "the number of rotated elements",
            dims,
            format!("an even number up to the head's {head_dim} is expected"),
        )),
    }
}

fn factor_above_zero(key: &str, factor: Option<f32>) -> Result<f32, ModelError> {
    match factor {
        Some(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
        Some(factor) => Err(ModelError::bad(key, factor, "a number above zero is expected")),
        None => Err(ModelError::bad(key, "missing", "the rope scaling needs it")),
    }
}

/// A factor of 0 means none; older files give it under another key, and a factor without a type is a linear one.
fn gguf_scaling(config: &Config) -> Result<Scaling, ModelError> {
    const KEY: &str = "rope.scaling.factor";
    let given = |key| Ok::<_, ModelError>(config.try_float(key, &[])?.filter(|&factor| factor != 0.0));
    let factor = given(KEY)?.or(given("rope.scale_linear")?);
    match (config.gguf_text("rope.scaling.type")?, factor) {
        (Some("none"), _) | (None, None) => Ok(Scaling::None),
        (Some("linear") | None, factor) => Ok(Scaling::Linear { factor: factor_above_zero(KEY, factor)? }),
        (Some(other), _) => Err(unsupported(other)),
    }
}

fn unsupported(kind: &str) -> ModelError {
    ModelError::Unsupported {
        what: format!("rope scaling of type {kind:?}"),
        why: "there are default, linear and llama3".into(),
    }
}

fn json_scaling(scaling: Option<&Value>) -> Result<Scaling, ModelError> {
    let Some(scaling) = scaling else { return Ok(Scaling::None) };
    if !scaling.is_object() {
        return Err(ModelError::bad("rope_scaling", scaling, "an object is expected"));
    }
    let given = |key: &str| scaling.get(key).filter(|v| !v.is_null());
    let kind = match given("rope_type").or_else(|| given("type")) {
        Some(kind) => {
            kind.as_str().ok_or_else(|| ModelError::bad("rope_type", kind, "a text is expected"))?
        }
        None => "default",
    };
    let needed = |key: &str| {
        let number = |v: &Value| {
            let number = v.as_f64().map(|v| v as f32);
            number.ok_or_else(|| ModelError::bad(key, v, "a number is expected"))
        };
        factor_above_zero(key, given(key).map(number).transpose()?)
    };
    match kind {
        "default" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor: needed("factor")? }),
        "llama3" => {
            let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
            if high <= low {
                return Err(ModelError::bad("high_freq_factor", high, "it must be above low_freq_factor"));
            }
            let (factor, original) = (needed("factor")?, needed("original_max_position_embeddings")?);
            Ok(Scaling::Llama3 { factor, low, high, original })
        }
        other => Err(unsupported(other)),
    }
}

/// Llama 3's GGUF files carry their scaling as a tensor of divisors.
pub(crate) fn divided_by_file(checkpoint: &mut Checkpoint, inv_freq: &mut [f32]) -> Result<(), ModelError> {
    const NAME: &str = "rope_freqs.weight";
    if let Some(divisors) = checkpoint.try_take(NAME, &[inv_freq.len()])? {
        let divisors = divisors.to_f32();
        if divisors.iter().any(|d| !d.is_finite() || *d <= 0.0) {
            return Err(ModelError::NotFinite { name: NAME.into() });
        }
        inv_freq.iter_mut().zip(divisors).for_each(|(f, d)| *f /= d);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_has_three_bands() {
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let scaled = RopeConfig { base: 500_000.0, scaling, dims: 128 }.inv_freq();
        let plain = RopeConfig { base: 500_000.0, scaling: Scaling::None, dims: 128 }.inv_freq();
        assert_eq!(scaled[0], plain[0], "fast pairs stay");
        assert!((scaled[63] / plain[63] - 0.125).abs() < 1e-6, "slow pairs are stretched by the factor");
        let middle = scaled.iter().zip(&plain).filter(|(s, p)| **s < 0.99 * **p && **s > 0.13 * **p).count();
        assert!(middle > 0, "some pairs lie between");
    }
}
