//! Kernels whose loops are written out: what is indexed by a variable does not stay in registers.
//!
//! The lines between `//$ for i in NAME` and `//$ end` are repeated as often as the count of that name says, with 0, 1, ... in
//! place of `$i`; such loops may lie in one another. The lines after `//$ part NAME` are a part that another text takes.

/// The parts of a text by their names.
pub(super) fn parts_of(text: &str) -> Vec<(&str, String)> {
    let mut parts: Vec<(&str, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("//$ part "), parts.last_mut()) {
            (Some(name), _) => parts.push((name, String::new())),
            (None, Some((_, part))) => {
                part.push_str(line);
                part.push('\n');
            }
            (None, None) => {}
        }
    }
    parts
}

/// The text with its loops written out.
pub(super) fn unrolled(text: &str, counts: &[(&str, usize)]) -> String {
    let mut lines = text.lines();
    let mut out = String::new();
    unroll(&mut lines, counts, &mut out);
    out
}

/// Up to the end of a loop, or of the text.
fn unroll<'a>(lines: &mut impl Iterator<Item = &'a str>, counts: &[(&str, usize)], out: &mut String) {
    while let Some(line) = lines.next() {
        let Some(directive) = line.trim_start().strip_prefix("//$ ") else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let Some((variable, name)) = directive.strip_prefix("for ").and_then(|of| of.split_once(" in "))
        else {
            return;
        };
        let mut inner = String::new();
        unroll(lines, counts, &mut inner);
        let (_, count) = counts.iter().find(|(known, _)| *known == name).expect("every loop has a count");
        for i in 0..*count {
            out.push_str(&inner.replace(&format!("${variable}"), &i.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{parts_of, unrolled};

    #[test]
    fn loops_are_written_out() {
        let text = "a\n    //$ for i in TWO\n//$ for j in THREE\nx[$i][$ju];\n//$ end\ny$i\n//$ end\nb\n";
        let want = "a\nx[0][0u];\nx[0][1u];\nx[0][2u];\ny0\nx[1][0u];\nx[1][1u];\nx[1][2u];\ny1\nb\n";
        assert_eq!(unrolled(text, &[("TWO", 2), ("THREE", 3)]), want);
    }

    #[test]
    fn parts_are_found_by_their_names() {
        let parts = parts_of("// A comment.\n\n//$ part A\nx\n//$ part B\ny\nz\n");
        assert_eq!(parts, [("A", "x\n".to_string()), ("B", "y\nz\n".to_string())]);
    }
}
