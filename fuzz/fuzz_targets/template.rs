//! Any text as a chat template: compiled and rendered, it must end, and within bounds.
#![no_main]

use exotherm_tokenizer::{ChatTemplate, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::new(source) else { return };
    let messages = [Message::new("user", "hello"), Message::new("assistant", "hi")];
    let extra = serde_json::json!({ "bos_token": "<s>", "tools": [{ "name": "f" }] });
    let _ = template.render(&messages, true, &extra);
});
