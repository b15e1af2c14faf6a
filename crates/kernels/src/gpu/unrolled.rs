//! Loops that are written out before a device's compiler sees them: what a lane holds must not lie in an array, which some
//! compilers put into memory.

/// Writes out what stands between `@repeat NAME COUNT` and `@end`, with the number of the turn in place of `@NAME`. A count is one
/// of `counts`, and repeats may stand in others under names that are no beginnings of each other.
pub(crate) fn unrolled(text: &str, counts: &[(&str, usize)]) -> String {
    let mut lines = text.lines();
    let mut out = String::new();
    while let Some(line) = lines.next() {
        let Some(what) = line.trim_start().strip_prefix("@repeat ") else {
            out += line;
            out.push('\n');
            continue;
        };
        let (name, count) = what.split_once(' ').expect("a repeat has a name and a count");
        let (_, count) = counts.iter().find(|(of, _)| *of == count).expect("the count is known");
        let mut depth = 1;
        let inner = lines.by_ref().take_while(|line| {
            depth += usize::from(line.trim_start().starts_with("@repeat "));
            depth -= usize::from(line.trim() == "@end");
            depth > 0
        });
        let body: String = inner.flat_map(|line| [line, "\n"]).collect();
        for turn in 0..*count {
            out += &unrolled(&body.replace(&format!("@{name}"), &turn.to_string()), counts);
        }
    }
    out
}

/// The parts of a text by their names: what stands after a line `//$ part NAME`.
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

#[cfg(test)]
mod tests {
    use super::{parts_of, unrolled};

    #[test]
    fn repeats_are_written_out() {
        let text = "a\n@repeat i TWO\nb@i\n    @repeat k ONE\nc@i_@k\n    @end\n@end\nd";
        assert_eq!(unrolled(text, &[("TWO", 2), ("ONE", 1)]), "a\nb0\nc0_0\nb1\nc1_0\nd\n");
    }

    #[test]
    fn loops_within_loops_are_written_out() {
        let text = "a\n    @repeat i TWO\n@repeat j THREE\nx[@i][@ju];\n@end\ny@i\n@end\nb\n";
        let want = "a\nx[0][0u];\nx[0][1u];\nx[0][2u];\ny0\nx[1][0u];\nx[1][1u];\nx[1][2u];\ny1\nb\n";
        assert_eq!(unrolled(text, &[("TWO", 2), ("THREE", 3)]), want);
    }

    #[test]
    fn parts_are_found_by_their_names() {
        let parts = parts_of("// A comment.\n\n//$ part A\nx\n//$ part B\ny\nz\n");
        assert_eq!(parts, [("A", "x\n".to_string()), ("B", "y\nz\n".to_string())]);
    }
}
