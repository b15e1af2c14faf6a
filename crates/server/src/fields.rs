//! A JSON object read field by field: what is not read in the end is unknown, and said so by name.

use serde_json::{Map, Value};

use crate::error::ApiError;

pub struct Fields {
    map: Map<String, Value>,
    /// Where the object stands in the request, with a dot at the end; empty for the request itself.
    path: String,
}

impl Fields {
    /// The request's body.
    pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let invalid =
            |why: String| ApiError::bad("invalid_json", format!("the body is no JSON object: {why}"));
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields { map, path: String::new() }),
            Ok(other) => Err(invalid(format!("it is {}", kind(&other)))),
            Err(error) => Err(invalid(error.to_string())),
        }
    }

    /// The object that stands at `path`.
    pub fn of(value: Value, path: &str) -> Result<Fields, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { map, path: format!("{path}.") }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// A field as it is; null is as good as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.shift_remove(name).filter(|value| !value.is_null())
    }

    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.path(name), "a string", &other)),
        }
    }

    pub fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(&self.path(name), "true or false", &other)),
        }
    }

    /// A number between two others, these included.
    pub fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        number(&value, &self.path(name), least, most).map(Some)
    }

    pub fn integer(&mut self, name: &str, least: i64, most: u64) -> Result<Option<i128>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        integer(&value, &self.path(name), least, most).map(Some)
    }

    /// A count, none or up to `most`.
    pub fn count(&mut self, name: &str, least: usize, most: usize) -> Result<Option<usize>, ApiError> {
        let value = self.integer(name, least as i64, most as u64)?;
        // It lies between two counts.
        Ok(value.map(|value| value as usize))
    }

    /// A field that clients send and that changes nothing here, as long as it is one of these values.
    pub fn only(&mut self, name: &str, allowed: &[Value]) -> Result<(), ApiError> {
        let path = self.path(name);
        match self.take(name) {
            Some(value) if !allowed.contains(&value) => Err(unsupported_value(&path, &value, allowed)),
            _ => Ok(()),
        }
    }

    pub fn need<T>(&self, name: &str, value: Option<T>) -> Result<T, ApiError> {
        let path = self.path(name);
        value
            .ok_or_else(|| ApiError::param(&path, "missing_required_parameter", format!("{path} is missing")))
    }

    /// The names that were not read, and whether anything is said for them.
    pub fn rest(&self) -> impl Iterator<Item = (String, bool)> {
        self.map.iter().map(|(name, value)| (self.path(name), !value.is_null()))
    }
}

pub fn unknown(path: &str) -> ApiError {
    let path = &shortened(path);
    ApiError::param(path, "unknown_parameter", format!("there is no parameter {path:?} here"))
}

pub fn unsupported(path: &str) -> ApiError {
    let path = &shortened(path);
    ApiError::param(path, "unsupported_parameter", format!("the parameter {path:?} is not supported"))
}

fn unsupported_value(path: &str, value: &Value, allowed: &[Value]) -> ApiError {
    let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
    let shown = shortened(&value.to_string());
    let message = format!("{path} cannot be {shown}; it can be {}", allowed.join(", "));
    ApiError::param(path, "unsupported_value", message)
}

/// Enough of a text to know it again.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

pub fn number(value: &Value, path: &str, least: f64, most: f64) -> Result<f32, ApiError> {
    let number = value.as_f64().ok_or_else(|| wrong_type(path, "a number", value))?;
    if !(least..=most).contains(&number) {
        return Err(out_of_range(path, value, least, most));
    }
    Ok(number as f32)
}

pub fn integer(value: &Value, path: &str, least: i64, most: u64) -> Result<i128, ApiError> {
    let number = match value {
        Value::Number(number) => number,
        other => return Err(wrong_type(path, "a whole number", other)),
    };
    let whole = number.as_u64().map(i128::from).or_else(|| number.as_i64().map(i128::from));
    match whole {
        Some(whole) if (i128::from(least)..=i128::from(most)).contains(&whole) => Ok(whole),
        // Whole numbers beyond 64 bits are read as floats.
        None if number.as_f64().is_some_and(|n| n.fract() != 0.0) => {
            Err(wrong_type(path, "a whole number", value))
        }
        _ => Err(out_of_range(path, value, least, most)),
    }
}

fn out_of_range(
    path: &str,
    value: &Value,
    least: impl std::fmt::Display,
    most: impl std::fmt::Display,
) -> ApiError {
    let message = format!("{path} is {value}, it must be between {least} and {most}");
    ApiError::param(path, "invalid_value", message)
}

pub fn wrong_type(path: &str, expected: &str, value: &Value) -> ApiError {
    ApiError::param(path, "invalid_type", format!("{path} must be {expected}, it is {}", kind(value)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).expect("an object")
    }

    #[test]
    fn what_is_not_read_is_named() {
        let mut read = fields(r#"{"a": 1, "b": null, "c": 2}"#);
        assert_eq!(read.integer("a", 0, 9).ok().flatten(), Some(1));
        assert_eq!(read.rest().collect::<Vec<_>>(), [("b".into(), false), ("c".into(), true)]);
    }

    #[test]
    fn numbers_keep_to_their_ranges() {
        let refused = |value: &str, code: &str| {
            let mut read = fields(&format!(r#"{{"x": {value}}}"#));
            let error = read.integer("x", -5, u64::MAX).expect_err(value);
            assert_eq!((error.param.as_deref(), error.code), (Some("x"), Some(code)), "{value}");
        };
        ["1.5", "\"1\"", "true", "[]", "{}"].iter().for_each(|v| refused(v, "invalid_type"));
        ["-6", "18446744073709551616", "1e300", "-1e300"].iter().for_each(|v| refused(v, "invalid_value"));
        let mut read = fields(
            r#"{"x": 18446744073709551615, "y": -1e999999, "z": 0.5}"#.replace("-1e999999", "3").as_str(),
        );
        assert_eq!(read.integer("x", 0, u64::MAX).ok().flatten(), Some(i128::from(u64::MAX)));
        assert!(read.number("y", 0.0, 2.0).is_err());
        assert_eq!(read.number("z", 0.0, 2.0).ok().flatten(), Some(0.5));
        assert!(Fields::parse(br#"{"y": 1e999999}"#).is_err());
    }

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        for body in ["", "{", "[]", "1", "\"x\"", "{\"a\":}", "{} x", "\u{0}"] {
            let error = Fields::parse(body.as_bytes()).err().expect(body);
            assert_eq!(error.code, Some("invalid_json"), "{body:?}");
        }
        assert!(Fields::parse(&[b'"', 0xff, b'"']).is_err());
        assert!(Fields::parse("[".repeat(100_000).as_bytes()).is_err());
    }
}
