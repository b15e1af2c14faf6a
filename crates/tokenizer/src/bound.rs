//! Bounds on what a chat template may do.
//!
//! minijinja bounds the steps and the depth, but not the size of the texts: twenty assignments of `x ~ x` make a million
//! times the text, a hundred more than there is memory. So every value that a template binds to a name (`set`, `for`,
//! `with`, macro parameters) passes through [`FILTER`], which refuses a text that is too long and counts them all
//! together; and the filters and methods that can multiply a text are replaced by ones that look first.
//!
//! Nor does it bound how deep values lie within one another, and it prints, compares and drops them recursively. So a
//! bound value may be [`NESTING_LIMIT`] levels deep, and what is assigned to a namespace is stored as a copy, or a
//! namespace could be put within itself. The parser recurses along chains (`x|f|f|…`, `x.a.a…`) as well, hence
//! [`TAG_LIMIT`].

use std::cell::Cell;

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, filters};

/// The longest text a template may build or write.
pub(crate) const TEXT_LIMIT: usize = 16 << 20;
/// The longest list a filter may unfold.
const ITEM_LIMIT: usize = 1 << 20;
/// All bound texts of one rendering together.
const BUDGET: usize = 512 << 20;
const FILTER: &str = "__bounded";
const COPY_FILTER: &str = "__bounded_copy";
/// How many lists or maps may lie within one another.
const NESTING_LIMIT: usize = 64;
/// Lists, maps and their items of one bound value.
const NODE_LIMIT: usize = 1 << 18;
/// What looking at one of them counts, in bytes of the budget.
const NODE_COST: usize = 128;
/// `elif`s of a template: each lies within the one before.
const ELIF_LIMIT: usize = 1000;
/// Characters of a tag, not counting those of quoted texts.
const TAG_LIMIT: usize = 8 << 10;

thread_local! {
    static SPENT: Cell<usize> = const { Cell::new(0) };
}

/// Runs a rendering with a fresh budget.
pub(crate) fn with_budget<T>(render: impl FnOnce() -> T) -> T {
    SPENT.set(0);
    render()
}

fn too_large(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("the template makes {what}"))
}

pub(crate) fn check_text(bytes: usize) -> Result<(), Error> {
    if bytes > TEXT_LIMIT {
        return Err(too_large(&format!("a text of more than {TEXT_LIMIT} bytes")));
    }
    Ok(())
}

fn bounded(value: &Value) -> Result<Value, Error> {
    let mut nodes = 0;
    // The sum of two lists is a promise of one, and a promise on promises is as deep as the template has made sums.
    let kept = match value.kind() {
        ValueKind::Iterable => copy(value, 0, &mut nodes)?,
        _ => {
            check_nesting(value, 0, &mut nodes)?;
            value.clone()
        }
    };
    spend(&kept, nodes)?;
    Ok(kept)
}

/// Counts a bound value: its text and the parts that had to be looked at.
fn spend(value: &Value, nodes: usize) -> Result<(), Error> {
    let text_len = |value: &Value| value.as_str().map_or(0, str::len);
    let mut bytes = text_len(value);
    if value.kind() == ValueKind::Seq
        && let Some(last) = value.len().and_then(|len| len.checked_sub(1))
    {
        // A list grows at its end; what came before was counted when it came.
        bytes = value.get_item_by_index(last).map_or(0, |item| text_len(&item));
    }
    check_text(bytes)?;
    let spent = SPENT.get().saturating_add(bytes).saturating_add(nodes * NODE_COST);
    SPENT.set(spent);
    match spent > BUDGET {
        true => Err(too_large(&format!("values of more than {BUDGET} bytes together"))),
        false => Ok(()),
    }
}

/// Whether a value holds others.
fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

fn count_node(depth: usize, nodes: &mut usize) -> Result<(), Error> {
    *nodes += 1;
    if depth > NESTING_LIMIT || *nodes > NODE_LIMIT {
        return Err(too_large("a value of too many parts or levels"));
    }
    Ok(())
}

fn check_nesting(value: &Value, depth: usize, nodes: &mut usize) -> Result<(), Error> {
    count_node(depth, nodes)?;
    if !is_container(value) {
        return Ok(());
    }
    for item in value.try_iter()? {
        match value.kind() {
            ValueKind::Map => check_nesting(&value.get_item(&item)?, depth + 1, nodes)?,
            _ => check_nesting(&item, depth + 1, nodes)?,
        }
    }
    Ok(())
}

/// Like [`bounded`], for what is stored in a namespace.
fn bounded_copy(value: &Value) -> Result<Value, Error> {
    let mut nodes = 0;
    let copied = copy(value, 0, &mut nodes)?;
    spend(&copied, nodes)?;
    Ok(copied)
}

fn copy(value: &Value, depth: usize, nodes: &mut usize) -> Result<Value, Error> {
    count_node(depth, nodes)?;
    if !is_container(value) {
        return Ok(value.clone());
    }
    let mut copied = Vec::new();
    for item in value.try_iter()? {
        let inner = if value.kind() == ValueKind::Map { value.get_item(&item)? } else { item.clone() };
        copied.push((item, copy(&inner, depth + 1, nodes)?));
    }
    Ok(match value.kind() {
        ValueKind::Map => Value::from_pairs(copied),
        _ => Value::from_iter(copied.into_iter().map(|(_, item)| item)),
    })
}

pub(crate) fn add_builtins(environment: &mut Environment<'_>) {
    environment.add_filter(FILTER, bounded);
    environment.add_filter(COPY_FILTER, bounded_copy);
    environment.add_filter("list", |state: &mut State, value: Value| {
        check_items(&value)?;
        filters::list(state, value)
    });
    environment.add_filter("sort", |state: &mut State, value: Value, options: Kwargs| {
        check_items(&value)?;
        filters::sort(state, value, options)
    });
    environment.add_filter("join", join);
    environment.add_filter("replace", |text: &str, from: &str, to: &str| replace(text, from, to, None));
    environment.add_filter(
        "indent",
        |text: &str, width: Option<usize>, rest: Rest<Value>, options: Kwargs| {
            let width = width.or(options.get("width")?).unwrap_or(4);
            let flag = |at: usize, name: &str| -> Result<bool, Error> {
                let named: Option<bool> = options.get(name)?;
                Ok(rest.get(at).map(Value::is_true).or(named).unwrap_or(false))
            };
            let (first, blank) = (flag(0, "first")?, flag(1, "blank")?);
            options.assert_all_used()?;
            indent(text, width, first, blank)
        },
    );
    environment.set_unknown_method_callback(method);
}

fn check_items(value: &Value) -> Result<(), Error> {
    match value.len() {
        Some(len) if len > ITEM_LIMIT => Err(too_large(&format!("a list of more than {ITEM_LIMIT} items"))),
        _ => Ok(()),
    }
}

fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (name, value.as_str(), args) {
        ("replace", Some(text), [from, to, rest @ ..]) if rest.len() <= 1 => {
            let count = rest.first().map(|count| i64::try_from(count.clone())).transpose()?;
            let (Some(from), Some(to)) = (from.as_str(), to.as_str()) else {
                return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args);
            };
            replace(text, from, to, count)
        }
        ("join", Some(glue), [list]) => {
            join(list, Some(glue), Kwargs::from_iter(Vec::<(&str, Value)>::new()))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn replace(text: &str, from: &str, to: &str, count: Option<i64>) -> Result<Value, Error> {
    let limit = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let found = text.matches(from).count().min(limit);
    check_text(text.len().saturating_add(found.saturating_mul(to.len())))?;
    Ok(Value::from(text.replacen(from, to, limit)))
}

fn join(list: &Value, glue: Option<&str>, options: Kwargs) -> Result<Value, Error> {
    let attribute: Option<String> = options.get("attribute")?;
    options.assert_all_used()?;
    let mut text = String::new();
    for (index, item) in list.try_iter()?.enumerate() {
        if index > 0 {
            text.push_str(glue.unwrap_or(""));
        }
        let item = match &attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        match item.as_str() {
            Some(part) => text.push_str(part),
            None => text.push_str(&item.to_string()),
        }
        check_text(text.len())?;
    }
    Ok(Value::from(text))
}

fn indent(text: &str, width: usize, first: bool, blank: bool) -> Result<Value, Error> {
    let lines = text.matches('\n').count() + 1;
    check_text(text.len().saturating_add(lines.saturating_mul(width)))?;
    let pad = " ".repeat(width);
    let mut indented = String::new();
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            indented.push('\n');
        }
        if (number > 0 || first) && (blank || number == 0 || !line.is_empty()) {
            indented.push_str(&pad);
        }
        indented.push_str(line);
    }
    Ok(Value::from(indented))
}

/// Sends every value that gets a name through [`FILTER`], and takes out Hugging Face's `{% generation %}` marks, which
/// matter for training only.
pub(crate) fn rewrite(source: &str) -> Result<String, String> {
    let mut rewritten = String::with_capacity(source.len() * 2);
    let mut rest = source;
    let mut elifs = 0;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        rewritten.push_str(before);
        let len = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map(|end| end + 2),
            Some(b'{') => tag_len(tag, "}}"),
            Some(b'%') => tag_len(tag, "%}"),
            _ => Some(1),
        };
        let Some(len) = len else {
            // An unclosed tag: the parser will say so.
            check_tag(tag)?;
            rewritten.push_str(tag);
            return Ok(rewritten);
        };
        let (tag, after) = tag.split_at(len);
        if !tag.starts_with("{#") {
            check_tag(tag)?;
        }
        rest = after;
        if !tag.starts_with("{%") {
            rewritten.push_str(tag);
        } else if inner(tag).1 == "raw" {
            let end = after.find("endraw").unwrap_or(after.len());
            rewritten.push_str(tag);
            rewritten.push_str(&after[..end]);
            rest = &after[end..];
        } else {
            elifs += usize::from(inner(tag).1.starts_with("elif"));
            rewritten.push_str(&rewrite_tag(tag));
        }
    }
    rewritten.push_str(rest);
    match elifs > ELIF_LIMIT {
        true => Err(format!("{elifs} elifs; at most {ELIF_LIMIT} are read")),
        false => Ok(rewritten),
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    let mut quote = None;
    let mut before = ' ';
    let mut unquoted = 0;
    for c in tag.chars() {
        match quote {
            Some(open) if c == open && before != '\\' => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None => unquoted += 1,
        }
        before = c;
    }
    match unquoted > TAG_LIMIT {
        true => Err(format!("a tag of {unquoted} characters; at most {TAG_LIMIT} are read")),
        false => Ok(()),
    }
}

/// The length of a tag up to and with `close`, which does not count within quotes.
fn tag_len(tag: &str, close: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in tag.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if tag[at..].starts_with(close) => return Some(at + close.len()),
            None => {}
        }
    }
    None
}

/// A block tag's opening mark, content and closing mark: `{%-`, `set x = 1`, `%}`.
fn inner(tag: &str) -> (&str, &str, &str) {
    let open = if tag[2..].starts_with(['-', '+']) { 3 } else { 2 };
    let body = &tag[open..tag.len() - 2];
    let body = body.strip_suffix(['-', '+']).unwrap_or(body);
    (&tag[..open], body.trim(), &tag[open + body.len()..])
}

fn rewrite_tag(tag: &str) -> String {
    let (open, body, close) = inner(tag);
    let (keyword, arguments) = body.split_once(|c: char| c.is_whitespace()).unwrap_or((body, ""));
    match keyword {
        "generation" => format!("{open} if true {close}"),
        "endgeneration" => format!("{open} endif {close}"),
        "set" => match top_level(arguments, '=') {
            Some(at) if !arguments[at + 1..].trim().is_empty() => {
                let (target, value) = (&arguments[..at], &arguments[at + 1..]);
                let filter = if target.contains('.') { COPY_FILTER } else { FILTER };
                format!("{open} set {target}= ({value})|{filter} {close}")
            }
            // Nothing to bind: the parser will say so.
            Some(_) => tag.to_owned(),
            None => format!("{open} {body} | {FILTER} {close}"),
        },
        "for" => {
            let targets = arguments.split(" in ").next().unwrap_or("");
            bind_again(tag, close, targets.split(','))
        }
        "with" => bind_again(tag, close, arguments.split(',').filter_map(|a| Some(a.split_once('=')?.0))),
        "macro" => {
            let parameters = arguments.split_once('(').map_or("", |(_, rest)| rest);
            let parameters = parameters.rsplit_once(')').map_or("", |(list, _)| list);
            bind_again(tag, close, parameters.split(',').filter_map(|p| p.split('=').next()))
        }
        _ => tag.to_owned(),
    }
}

/// The tag, and after it each of its names set to its own value, bounded.
fn bind_again<'a>(tag: &str, close: &str, names: impl Iterator<Item = &'a str>) -> String {
    let mut text = tag.to_owned();
    let is_name = |name: &&str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    for name in names.map(|name| name.trim().trim_matches(['(', ')', ' '])).filter(is_name) {
        let open = if close.starts_with('-') { "{%-" } else { "{%" };
        text.push_str(&format!("{open} set {name} = {name}|{FILTER} {close}"));
    }
    text
}

/// Where `wanted` stands alone: outside of quotes and brackets, and not part of `==`, `!=`, `<=` or `>=`.
fn top_level(text: &str, wanted: char) -> Option<usize> {
    let mut quote = None;
    let mut depth = 0i32;
    let mut before = ' ';
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None => match c {
                '\'' | '"' => quote = Some(c),
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth -= 1,
                c if c == wanted && depth == 0 && !matches!(before, '=' | '!' | '<' | '>') => {
                    return (!text[at + 1..].starts_with('=')).then_some(at);
                }
                _ => {}
            },
        }
        before = c;
    }
    None
}
