//! A JSON object read field by field, each from the text in which it stands: no tree is made of what a client sends, so
//! what is held of it has the size of its text. What is not read in the end is unknown, and said so by name.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{Deserialize, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::ApiError;

/// A value as it is written, known to be JSON.
pub type Raw<'a> = &'a RawValue;

/// Fields that an object may have: more than all there are.
const MOST_FIELDS: usize = 256;

pub struct Fields<'a> {
    members: Vec<(Cow<'a, str>, Raw<'a>)>,
    /// Where the object stands in the request, with a dot at the end; empty for the request itself.
    path: String,
}

impl<'a> Fields<'a> {
    /// The request's body.
    pub fn parse(body: &'a [u8]) -> Result<Fields<'a>, ApiError> {
        let invalid =
            |why: String| ApiError::bad("invalid_json", format!("the body is no JSON object: {why}"));
        let text = std::str::from_utf8(body).map_err(|error| invalid(error.to_string()))?;
        let members = members(text, "", MOST_FIELDS, |error| invalid(error.to_string()))?;
        Ok(Fields { members, path: String::new() })
    }

    /// The object that stands at `path`.
    pub fn of(value: Raw<'a>, path: &str) -> Result<Fields<'a>, ApiError> {
        Ok(Fields { members: object(value, path, MOST_FIELDS)?, path: format!("{path}.") })
    }

    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// A field as it is; null is as good as absent.
    pub fn take(&mut self, name: &str) -> Option<Raw<'a>> {
        let at = self.members.iter().position(|(known, _)| known == name)?;
        let (_, value) = self.members.remove(at);
        (!is_null(value)).then_some(value)
    }

    pub fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        string(value, &self.path(name), "a string").map(Some)
    }

    pub fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.get() {
                "true" => Ok(Some(true)),
                "false" => Ok(Some(false)),
                _ => Err(wrong_type(&self.path(name), "true or false", value)),
            },
        }
    }

    /// A number between two others, these included.
    pub fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        number(value, &self.path(name), least, most).map(Some)
    }

    pub fn integer(&mut self, name: &str, least: i64, most: u64) -> Result<Option<i128>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        integer(value, &self.path(name), least, most).map(Some)
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
        let Some(value) = self.take(name) else { return Ok(()) };
        if kind(value) == OBJECT {
            object(value, &path, MOST_FIELDS)?;
        }
        // None of those that are allowed is long.
        let is_short = value.get().len() <= 256;
        let read: Option<Value> = is_short.then(|| serde_json::from_str(value.get()).ok()).flatten();
        match read {
            Some(read) if allowed.contains(&read) => Ok(()),
            _ => Err(unsupported_value(&path, value, allowed)),
        }
    }

    pub fn need<T>(&self, name: &str, value: Option<T>) -> Result<T, ApiError> {
        let path = self.path(name);
        value
            .ok_or_else(|| ApiError::param(&path, "missing_required_parameter", format!("{path} is missing")))
    }

    /// The names that were not read, and whether anything is said for them.
    pub fn rest(&self) -> impl Iterator<Item = (String, bool)> {
        self.members.iter().map(|(name, value)| (self.path(name), !is_null(value)))
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

fn unsupported_value(path: &str, value: Raw, allowed: &[Value]) -> ApiError {
    let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
    let shown = shortened(value.get());
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

pub fn is_null(value: Raw) -> bool {
    value.get() == "null"
}

pub fn is_string(value: Raw) -> bool {
    value.get().starts_with('"')
}

pub fn is_array(value: Raw) -> bool {
    value.get().starts_with('[')
}

pub fn is_number(value: Raw) -> bool {
    kind(value) == NUMBER
}

pub fn string(value: Raw, path: &str, expected: &str) -> Result<String, ApiError> {
    if !is_string(value) {
        return Err(wrong_type(path, expected, value));
    }
    // It is JSON, but may spell half a character.
    serde_json::from_str(value.get())
        .map_err(|error| ApiError::param(path, "invalid_json", format!("{path} is no text: {error}")))
}

pub fn number(value: Raw, path: &str, least: f64, most: f64) -> Result<f32, ApiError> {
    if !is_number(value) {
        return Err(wrong_type(path, "a number", value));
    }
    match value.get().parse::<f64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number as f32),
        _ => Err(out_of_range(path, value, least, most)),
    }
}

/// A whole number, written as one: like OpenAI, nothing else is taken for it, not even 16.0.
pub fn integer(value: Raw, path: &str, least: i64, most: u64) -> Result<i128, ApiError> {
    if !is_number(value) {
        return Err(wrong_type(path, "a whole number", value));
    }
    let text = value.get();
    if let Ok(whole) = text.parse::<i128>() {
        let fits = (i128::from(least)..=i128::from(most)).contains(&whole);
        return if fits { Ok(whole) } else { Err(out_of_range(path, value, least, most)) };
    }
    let fits = text.parse::<f64>().is_ok_and(|number| (least as f64..=most as f64).contains(&number));
    if !fits {
        return Err(out_of_range(path, value, least, most));
    }
    let message = format!(
        "{path} must be a whole number, written without a point or an exponent; it is {}",
        shortened(text)
    );
    Err(ApiError::param(path, "invalid_type", message))
}

fn out_of_range(path: &str, value: Raw, least: impl fmt::Display, most: impl fmt::Display) -> ApiError {
    let message = format!("{path} is {}, it must be between {least} and {most}", shortened(value.get()));
    ApiError::param(path, "invalid_value", message)
}

pub fn wrong_type(path: &str, expected: &str, value: Raw) -> ApiError {
    ApiError::param(path, "invalid_type", format!("{path} must be {expected}, it is {}", kind(value)))
}

const NUMBER: &str = "a number";
const OBJECT: &str = "an object";

fn kind(value: Raw) -> &'static str {
    match value.get().as_bytes().first() {
        Some(b'n') => "null",
        Some(b't' | b'f') => "true or false",
        Some(b'"') => "a string",
        Some(b'[') => "an array",
        Some(b'{') => OBJECT,
        _ => NUMBER,
    }
}

/// The members of the object that stands at `path`, `most` of them at most.
pub fn object<'a>(value: Raw<'a>, path: &str, most: usize) -> Result<Vec<(Cow<'a, str>, Raw<'a>)>, ApiError> {
    if kind(value) != OBJECT {
        return Err(wrong_type(path, "an object", value));
    }
    // It is JSON, but a name may spell half a character.
    members(value.get(), path, most, |error| {
        ApiError::param(path, "invalid_json", format!("{path} is no object: {error}"))
    })
}

fn members<'a>(
    text: &'a str,
    path: &str,
    most: usize,
    invalid: impl Fn(serde_json::Error) -> ApiError,
) -> Result<Vec<(Cow<'a, str>, Raw<'a>)>, ApiError> {
    let mut members = Members { path, most, read: Vec::new(), fault: None };
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = reader.deserialize_map(&mut members).and_then(|()| reader.end());
    match (members.fault, read) {
        (Some(fault), _) => Err(fault),
        (None, Err(error)) => Err(invalid(error)),
        (None, Ok(())) => Ok(members.read),
    }
}

/// Reads an object, and refuses one that names a field twice: readers differ in which of the two they take.
struct Members<'a, 'p> {
    path: &'p str,
    most: usize,
    read: Vec<(Cow<'a, str>, Raw<'a>)>,
    fault: Option<ApiError>,
}

impl<'de> Visitor<'de> for &mut Members<'de, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((Name(name), value)) = map.next_entry::<Name, Raw>()? {
            let of_path = |name: &str| match self.path {
                "" => shortened(name),
                path => format!("{path}.{}", shortened(name)),
            };
            if self.read.iter().any(|(known, _)| *known == name) {
                let path = of_path(&name);
                let message = format!("{path:?} is given twice");
                self.fault = Some(ApiError::param(path, "duplicate_parameter", message));
            } else if self.read.len() == self.most {
                let message = format!("an object has more than {} fields", self.most);
                self.fault =
                    Some(ApiError { param: Some(of_path(&name)), ..ApiError::bad("invalid_value", message) });
            } else {
                self.read.push((name, value));
                continue;
            }
            return Err(A::Error::custom("refused"));
        }
        Ok(())
    }
}

/// A field's name, borrowed where it can be.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Name<'de>, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_string())))
            }
        }
        reader.deserialize_str(Text)
    }
}

/// Goes through an array, item by item, until `take` refuses one.
pub fn each<'a>(
    array: Raw<'a>,
    take: impl FnMut(usize, Raw<'a>) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let mut items = Items { take, fault: None };
    let read = serde_json::Deserializer::from_str(array.get()).deserialize_seq(&mut items);
    match (items.fault, read) {
        (Some(fault), _) => Err(fault),
        (None, Err(error)) => Err(ApiError::bad("invalid_json", error.to_string())),
        (None, Ok(())) => Ok(()),
    }
}

pub fn count(array: Raw) -> Result<usize, ApiError> {
    let mut count = 0;
    each(array, |_, _| {
        count += 1;
        Ok(())
    })?;
    Ok(count)
}

struct Items<F> {
    take: F,
    fault: Option<ApiError>,
}

impl<'de, F: FnMut(usize, Raw<'de>) -> Result<(), ApiError>> Visitor<'de> for &mut Items<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut index = 0;
        while let Some(item) = seq.next_element::<Raw>()? {
            if let Err(fault) = (self.take)(index, item) {
                self.fault = Some(fault);
                return Err(A::Error::custom("refused"));
            }
            index += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields<'_> {
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
            let text = format!(r#"{{"x": {value}}}"#);
            let mut read = fields(&text);
            let error = read.integer("x", -5, u64::MAX).expect_err(value);
            assert_eq!((error.param.as_deref(), error.code), (Some("x"), Some(code)), "{value}");
        };
        ["1.5", "16.0", "1e3", "\"1\"", "true", "[]", "{}"].iter().for_each(|v| refused(v, "invalid_type"));
        ["-6", "18446744073709551616", "1e300", "-1e300"].iter().for_each(|v| refused(v, "invalid_value"));
        let mut read = fields(r#"{"x": 18446744073709551615, "y": -1e999999, "z": 0.5}"#);
        assert_eq!(read.integer("x", 0, u64::MAX).ok().flatten(), Some(i128::from(u64::MAX)));
        assert!(read.number("y", 0.0, 2.0).is_err());
        assert_eq!(read.number("z", 0.0, 2.0).ok().flatten(), Some(0.5));
    }

    #[test]
    fn a_name_that_is_given_twice_is_refused() {
        let refused = |error: ApiError| (error.param.expect("a name"), error.code);
        for body in [r#"{"a": 1, "b": 2, "a": 1}"#, r#"{"a": 1, "\u0061": 1}"#, r#"{"a": null, "a": null}"#] {
            let error = Fields::parse(body.as_bytes()).err().expect(body);
            assert_eq!(refused(error), ("a".into(), Some("duplicate_parameter")), "{body}");
        }
        let mut outer = fields(r#"{"o": {"x": 1, "x": 2}, "only": {"type": 1, "type": 1}}"#);
        let inner = Fields::of(outer.take("o").expect("it is there"), "o").err().expect("refused");
        assert_eq!(refused(inner), ("o.x".into(), Some("duplicate_parameter")));
        let only = outer.only("only", &[serde_json::json!({"type": 1})]).expect_err("refused");
        assert_eq!(refused(only), ("only.type".into(), Some("duplicate_parameter")));
    }

    #[test]
    fn arrays_are_gone_through_until_one_is_refused() {
        let mut read = fields(r#"{"a": [1, "x", [2], {}, null]}"#);
        let array = read.take("a").expect("it is there");
        let mut seen = Vec::new();
        let refused = each(array, |i, item| {
            seen.push((i, item.get()));
            if is_array(item) { Err(ApiError::bad("enough", "")) } else { Ok(()) }
        });
        assert_eq!((seen, count(array).ok()), (vec![(0, "1"), (1, "\"x\""), (2, "[2]")], Some(5)));
        assert_eq!(refused.expect_err("refused").code, Some("enough"));
    }

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        for body in ["", "{", "[]", "1", "\"x\"", "{\"a\":}", "{} x", "\u{0}"] {
            let error = Fields::parse(body.as_bytes()).err().expect(body);
            assert_eq!(error.code, Some("invalid_json"), "{body:?}");
        }
        assert!(Fields::parse(&[b'"', 0xff, b'"']).is_err());
        assert!(Fields::parse("[".repeat(100_000).as_bytes()).is_err());
        let many: String = (0..300).map(|i| format!("\"{i}\":1,")).collect();
        assert!(Fields::parse(format!("{{{}\"x\":1}}", many).as_bytes()).is_err());
        // However deep it goes, it is gone through without the stack.
        let deep = format!(r#"{{"a": {}{}}}"#, "[".repeat(500_000), "]".repeat(500_000));
        assert_eq!(fields(&deep).rest().count(), 1);
        let error = fields(r#"{"a": "\ud800"}"#).string("a").expect_err("half a character");
        assert_eq!((error.param.as_deref(), error.code), (Some("a"), Some("invalid_json")));
    }
}
