//! `/openapi.json`: what the server takes, with the numbers that depend on its models.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::model::{Models, ServedModel};
use crate::params::MOST_CHOICES;

const DOCUMENT: &str = include_str!("openapi.json");

/// Where in the document's schemas a number stands, and what it is.
type Bound = (&'static str, fn(&ServedModel) -> usize);

const BOUNDS: &[Bound] = &[
    ("/Generation/properties/n/maximum", |model| model.handle.most_open().min(MOST_CHOICES)),
    ("/Generation/properties/max_tokens/maximum", |model| model.handle.ctx()),
    ("/CompletionRequest/properties/prompt/oneOf/2/maxItems", |model| model.handle.most_open()),
    ("/ChatRequest/properties/max_completion_tokens/maximum", |model| model.handle.ctx()),
    ("/Tokens/maxItems", |model| model.handle.ctx()),
    ("/Tokens/items/maximum", |model| model.handle.vocab().saturating_sub(1)),
    ("/DetokenizeRequest/properties/tokens/items/maximum", |model| {
        model.tokenizer.vocab_size().saturating_sub(1)
    }),
];

/// The document; of several models the largest numbers are told.
pub fn document(models: Option<&Models>) -> Cow<'static, str> {
    let (Some(models), Ok(mut document)) = (models, serde_json::from_str::<Value>(DOCUMENT)) else {
        return DOCUMENT.into();
    };
    for (place, bound) in BOUNDS {
        let most = models.0.iter().map(|model| bound(model)).max();
        let (parent, name) = place.rsplit_once('/').unwrap_or(("", place));
        let schema = document.pointer_mut(&format!("/components/schemas{parent}"));
        if let (Some(Value::Object(schema)), Some(most)) = (schema, most) {
            schema.insert(name.into(), json!(most));
        }
    }
    document.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_has_its_place() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
        for (place, _) in BOUNDS {
            let (parent, _) = place.rsplit_once('/').expect("a place");
            let schema = document.pointer(&format!("/components/schemas{parent}"));
            assert!(schema.is_some_and(Value::is_object), "{place}");
        }
    }
}
