//! Chat templates: Jinja, as Hugging Face's `apply_chat_template` renders it, within bounds.

use std::io::Write;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use crate::TokenizerError;
use crate::bound;

const SOURCE_LIMIT: usize = 1 << 20;
/// Steps of the interpreter; real templates take some hundreds a message.
const FUEL: u64 = 20_000_000;
const RECURSION_LIMIT: usize = 100;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A compiled chat template.
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    pub fn new(source: &str) -> Result<Self, TokenizerError> {
        Self::compile(source).map_err(TokenizerError::Template)
    }

    /// Like `new`, with the bare reason of a failure, which can be kept and told more than once.
    pub(crate) fn compile(source: &str) -> Result<Self, String> {
        if source.len() > SOURCE_LIMIT {
            return Err(format!("it is {} bytes long; at most {SOURCE_LIMIT} are read", source.len()));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| describe(&e))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        bound::add_builtins(&mut environment);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        let rewritten = bound::rewrite(source)?;
        let compiled = on_deep_stack(|| environment.add_template_owned("chat", rewritten));
        compiled?.map_err(|e| describe(&e))?;
        Ok(Self { source: source.to_owned(), environment })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders the conversation. `extra` is an object of further variables, such as `bos_token`, `tools` or
    /// `enable_thinking`; where a message needs more than a role and a content, `messages` in it replaces the list.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        extra: &serde_json::Value,
    ) -> Result<String, TokenizerError> {
        let messages: Vec<serde_json::Value> = messages
            .iter()
            .map(|message| serde_json::json!({ "role": message.role, "content": message.content }))
            .collect();
        let mut context = serde_json::Map::new();
        context.insert("messages".into(), messages.into());
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        match extra {
            serde_json::Value::Object(extra) => {
                context.extend(extra.iter().map(|(k, v)| (k.clone(), v.clone())))
            }
            serde_json::Value::Null => {}
            _ => return Err(TokenizerError::Render("the further variables are no object".into())),
        }
        let mut output = LimitedOutput::default();
        let rendered = on_deep_stack(|| {
            let template = self.environment.get_template("chat")?;
            bound::with_budget(|| {
                template.render_captured_to(Value::from(Serde(&context)), &mut output).map(drop)
            })
        });
        rendered.and_then(|done| done.map_err(|e| describe(&e))).map_err(TokenizerError::Render)?;
        String::from_utf8(output.bytes).map_err(|e| TokenizerError::Render(e.to_string()))
    }
}

/// Runs `work` on a thread whose stack is deep enough for all that `bound` lets pass: compiling a template and
/// rendering it recurse along its expressions, and the caller's own stack may be small.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    const STACK_BYTES: usize = 64 << 20;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".into()).stack_size(STACK_BYTES);
        let worker = thread
            .spawn_scoped(scope, work)
            .map_err(|e| format!("no thread could be started for it: {e}"))?;
        Ok(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Collects what a template writes and fails once it is too much.
#[derive(Default)]
struct LimitedOutput {
    bytes: Vec<u8>,
}

impl Write for LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len().saturating_add(bytes.len()) > bound::TEXT_LIMIT {
            return Err(std::io::Error::other(format!("more than {} bytes of text", bound::TEXT_LIMIT)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The message of an error and of those below it, on one line.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(below) = source {
        text.push_str(": ");
        text.push_str(&below.to_string());
        source = below.source();
    }
    text
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
}

/// Python's `json.dumps`: a space after `,` and `:`, nothing escaped that need not be, an indent if asked for.
fn tojson(_: &State<'_, '_>, value: &Value, options: minijinja::value::Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let _: (Option<Value>, Option<bool>) = (options.get("separators")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    if ascii == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=true) is not supported"));
    }
    let mut text = String::new();
    dump(value, indent.map(|width| width.min(16)), 0, &mut text)?;
    Ok(Value::from_safe_string(text))
}

fn dump(value: &Value, indent: Option<usize>, depth: usize, text: &mut String) -> Result<(), Error> {
    bound::check_text(text.len())?;
    if depth > RECURSION_LIMIT {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is nested too deeply"));
    }
    let (open, close) = match value.kind() {
        ValueKind::Map => ('{', '}'),
        ValueKind::Seq | ValueKind::Iterable => ('[', ']'),
        _ => {
            let scalar = serde_json::to_string(value)
                .map_err(|e| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")))?;
            text.push_str(&scalar);
            return Ok(());
        }
    };
    let new_line = |text: &mut String, depth: usize| {
        if let Some(width) = indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    text.push(open);
    let mut empty = true;
    for item in value.try_iter()? {
        if !empty {
            text.push_str(if indent.is_some() { "," } else { ", " });
        }
        empty = false;
        new_line(text, depth + 1);
        if open == '{' {
            let key = item.as_str().map_or_else(|| item.to_string(), str::to_owned);
            text.push_str(&serde_json::Value::from(key).to_string());
            text.push_str(": ");
            dump(&value.get_item(&item)?, indent, depth + 1, text)?;
        } else {
            dump(&item, indent, depth + 1, text)?;
        }
    }
    if !empty {
        new_line(text, depth);
    }
    text.push(close);
    Ok(())
}
