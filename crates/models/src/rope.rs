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
    pub fn read(config: &Config, head_dim: usize, kind: Option<&str>) -> Result<RopeConfig, ModelError> {
        let per_kind = kind.map(|kind| format!("rope_parameters.{kind}"));
        let parameters = per_kind
            .as_deref()
            .and_then(|path| config.json(&[path]))
            .or_else(|| config.json(&["rope_parameters"]).filter(|p| p.get("rope_theta").is_some()));
        let base = match parameters.and_then(|p| p.get("rope_theta")).and_then(Value::as_f64) {
            Some(base) if base > 0.0 && base.is_finite() => base as f32,
            Some(base) => return Err(ModelError::bad("rope_theta", base, "a number above zero is expected")),
            None => config.positive("rope.freq_base", &["rope_theta"], Some(10_000.0))?,
        };
        let scaling = if config.is_gguf() {
            gguf_scaling(config)?
        } else {
            json_scaling(parameters.or_else(|| config.json(&["rope_scaling"])))?
        };
        Ok(RopeConfig { base, scaling, dims: rotated_dims(config, parameters, head_dim)? })
    }
}

fn rotated_dims(config: &Config, parameters: Option<&Value>, head_dim: usize) -> Result<usize, ModelError> {
    let share = parameters.and_then(|p| p.get("partial_rotary_factor")).and_then(Value::as_f64);
    let share = match share {
        Some(share) => share as f32,
        None => config.try_float("", &["partial_rotary_factor"])?.unwrap_or(1.0),
    };
    let dims = match config.is_gguf() {
        true => config.try_count("rope.dimension_count", &[])?.unwrap_or(head_dim),
        false => (head_dim as f32 * share) as usize,
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

fn gguf_scaling(config: &Config) -> Result<Scaling, ModelError> {
    let factor = config.try_float("rope.scaling.factor", &[])?;
    match config.gguf_str("rope.scaling.type") {
        None | Some("none") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor: factor_above_zero("rope.scaling.factor", factor)? }),
        Some(other) => Err(unsupported(other)),
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
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
    let number = |key: &str| scaling.get(key).and_then(Value::as_f64).map(|v| v as f32);
    let needed = |key: &str| factor_above_zero(key, number(key));
    match kind {
        None | Some("default") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor: needed("factor")? }),
        Some("llama3") => {
            let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
            if high <= low {
                return Err(ModelError::bad("high_freq_factor", high, "it must be above low_freq_factor"));
            }
            let (factor, original) = (needed("factor")?, needed("original_max_position_embeddings")?);
            Ok(Scaling::Llama3 { factor, low, high, original })
        }
        Some(other) => Err(unsupported(other)),
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
