//! What a machine can see of the project's rules: lengths, layering, where `unsafe` may stand, words that must
//! not be left behind.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

const MOST_LINES: usize = 600;
const MOST_FUNCTION_LINES: usize = 70;
const MOST_FILE_BYTES: u64 = 1 << 20;

/// What each crate may depend on, lowest first; a crate that is missing here is an error.
const LAYERS: &[(&str, &[&str])] = &[
    ("tensor", &[]),
    ("tokenizer", &[]),
    ("observe", &[]),
    ("weights", &["tensor"]),
    ("kernels", &["tensor"]),
    ("models", &["tensor", "kernels", "weights"]),
    ("engine", &["kernels"]),
    ("server", &["engine", "tokenizer", "observe"]),
    ("cli", &["tensor", "kernels", "weights", "models", "engine", "tokenizer", "observe", "server"]),
];

/// Where `unsafe` may stand.
const UNSAFE_ALLOWED: &[&str] = &["crates/kernels/", "crates/weights/src/mapping.rs"];

pub fn run(root: &Path) -> Result<()> {
    let mut found = Vec::new();
    for file in tracked(root)? {
        check_file(root, &file, &mut found);
    }
    for folder in std::fs::read_dir(root.join("crates")).context("crates/ is missing")?.flatten() {
        check_layer(&folder.path(), &mut found);
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!("the tree is not tidy:\n  {}", found.join("\n  "))
}

/// The files that git tracks or would track.
fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let list = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output =
        Command::new("git").args(list).current_dir(root).output().context("git could not be started")?;
    let names = String::from_utf8(output.stdout).context("git lists names that are not UTF-8")?;
    Ok(names.lines().map(PathBuf::from).filter(|f| root.join(f).is_file()).collect())
}

fn check_file(root: &Path, file: &Path, found: &mut Vec<String>) {
    let shown = file.display().to_string();
    let size = std::fs::metadata(root.join(file)).map_or(0, |m| m.len());
    if size > MOST_FILE_BYTES {
        found.push(format!("{shown}: {size} bytes, at most {MOST_FILE_BYTES} are allowed"));
    }
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if !matches!(extension, "rs" | "py" | "wgsl" | "cu") {
        return;
    }
    let Ok(text) = std::fs::read_to_string(root.join(file)) else {
        return found.push(format!("{shown}: not UTF-8"));
    };
    let lines = text.lines().count();
    if lines > MOST_LINES {
        found.push(format!("{shown}: {lines} lines, at most {MOST_LINES} are allowed"));
    }
    for (name, line, length) in long_functions(&text, extension) {
        found.push(format!(
            "{shown}:{line}: fn {name} has {length} lines, at most {MOST_FUNCTION_LINES} are allowed"
        ));
    }
    check_words(&shown, &text, found);
}

fn check_words(shown: &str, text: &str, found: &mut Vec<String>) {
    // Spelled in pieces, so that this file does not find itself.
    let unfinished =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("#[ig", "nore"), concat!("todo", "!(")];
    for (i, line) in text.lines().enumerate() {
        for word in unfinished.iter().filter(|w| line.contains(*w)) {
            found.push(format!("{shown}:{}: {word} was left behind", i + 1));
        }
        let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|u| line.contains(u));
        let is_comment = line.trim_start().starts_with("//") || line.contains('"');
        // Tests count allocations through a global allocator of their own.
        let allowed =
            shown.contains("/tests/") || UNSAFE_ALLOWED.iter().any(|place| shown.starts_with(place));
        if is_unsafe && !is_comment && !allowed {
            found.push(format!("{shown}:{}: unsafe stands only in {}", i + 1, UNSAFE_ALLOWED.join(", ")));
        }
    }
}

/// Functions over the limit: (name, line, length). The code is formatted, so a function ends at the first closing
/// brace as far in as its first line; a Python function at the next line that is no further in.
fn long_functions(text: &str, extension: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut long = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line, extension) else { continue };
        let depth = indent(line);
        let rest = lines[start + 1..].iter();
        let length = match extension {
            "py" => 1 + rest.take_while(|l| l.trim().is_empty() || indent(l) > depth).count(),
            _ if line.trim_end().ends_with(['}', ';']) => 1,
            _ => 2 + rest.take_while(|l| !(indent(l) == depth && l.trim_start().starts_with('}'))).count(),
        };
        if length > MOST_FUNCTION_LINES {
            long.push((name, start + 1, length));
        }
    }
    long
}

fn function_name(line: &str, extension: &str) -> Option<String> {
    let keyword = if extension == "py" { "def " } else { "fn " };
    let trimmed = line.trim_start();
    let before = trimmed.split(keyword).next()?;
    let is_definition = before.len() < trimmed.len()
        && before.split_whitespace().all(|w| {
            matches!(w, "pub" | "const" | "async" | "unsafe" | "extern" | "\"C\"") || w.starts_with("pub(")
        });
    let name = trimmed[before.len()..].strip_prefix(keyword)?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (is_definition && end > 0).then(|| name[..end].to_string())
}

fn check_layer(folder: &Path, found: &mut Vec<String>) {
    let name = folder.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let Ok(manifest) = std::fs::read_to_string(folder.join("Cargo.toml")) else { return };
    let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == name) else {
        return found
            .push(format!("crates/{name}: its place among the layers is not said in xtask/src/tidy.rs"));
    };
    // Tests may look further down the stack than the crate itself.
    let own = manifest.split("[dev-dependencies]").next().unwrap_or_default();
    for dependency in own.lines().filter_map(|l| l.strip_prefix("exotherm-")) {
        let dependency = dependency.split(['.', ' ', '=']).next().unwrap_or_default();
        if !allowed.contains(&dependency) {
            found.push(format!("crates/{name} must not depend on {dependency}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_of_71_lines_is_too_long() {
        let body = |n: usize| {
            format!("impl X {{\n    pub(crate) fn f() {{\n{}    }}\n}}\n", "        g();\n".repeat(n))
        };
        assert_eq!(long_functions(&body(68), "rs"), []);
        assert_eq!(long_functions(&body(69), "rs"), [("f".to_string(), 2, 71)]);
    }

    #[test]
    fn python_functions_end_where_the_indentation_does() {
        let text = format!("def f():\n{}\nx = 1\n", "    g()\n".repeat(70));
        assert_eq!(long_functions(&text, "py")[0].0, "f");
        assert_eq!(long_functions("def f():\n    return 1\n", "py"), []);
    }

    #[test]
    fn words_left_behind_and_misplaced_unsafe_are_found() {
        let mut found = Vec::new();
        check_words("crates/cli/src/main.rs", concat!("// TO", "DO later\nunsafe { f() }\n"), &mut found);
        assert_eq!(found.len(), 2, "{found:?}");
        found.clear();
        check_words("crates/kernels/src/cpu/memory.rs", "unsafe { f() }\n", &mut found);
        assert!(found.is_empty());
    }

    #[test]
    fn a_word_in_a_name_is_no_function() {
        assert_eq!(function_name("    let f: fn (usize) = g;", "rs"), None);
        assert_eq!(function_name("    pub const fn size() -> usize {", "rs"), Some("size".into()));
    }
}
