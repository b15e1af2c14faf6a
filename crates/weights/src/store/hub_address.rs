//! `hf:org/repo[@revision][/file]`, and which files of a repository make a model.

use std::path::{Component, Path};

use super::error::StoreError;

const PREFIX: &str = "hf:";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubAddress {
    /// `org/name`.
    pub repo: String,
    pub revision: String,
    pub file: Option<String>,
}

pub(crate) fn is_hub_address(arg: &str) -> bool {
    arg.starts_with(PREFIX)
}

impl HubAddress {
    pub(crate) fn parse(arg: &str) -> Result<Self, StoreError> {
        let wrong = |reason: &str| StoreError::HubAddress { arg: arg.to_owned(), reason: reason.to_owned() };
        let rest = arg.strip_prefix(PREFIX).ok_or_else(|| wrong("it does not start with hf:"))?;
        let (org, rest) =
            rest.split_once('/').ok_or_else(|| wrong("it needs an organisation and a repository"))?;
        let name_end = rest.find(['/', '@']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(name_end);
        if !is_plain_name(org) || !is_plain_name(name) {
            return Err(wrong("names are made of letters, digits, '-', '_' and '.'"));
        }
        let (revision, rest) = match rest.strip_prefix('@') {
            Some(rest) => split_revision(rest),
            None => ("main", rest),
        };
        if !revision.split('/').all(is_plain_name) {
            return Err(wrong("the revision is not a branch, tag or commit"));
        }
        let file = rest.strip_prefix('/').filter(|file| !file.is_empty());
        if file.is_some_and(|file| !is_plain_path(file)) {
            return Err(wrong("the file must be a plain path inside the repository"));
        }
        Ok(Self {
            repo: format!("{org}/{name}"),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }

    /// The repository with its revision, for messages.
    pub(crate) fn shown(&self) -> String {
        match self.revision.as_str() {
            "main" => self.repo.clone(),
            revision => format!("{}@{revision}", self.repo),
        }
    }
}

/// A revision ends at the next `/`, but for the pull-request references of the hub, `refs/pr/N`.
fn split_revision(text: &str) -> (&str, &str) {
    let skipped = if text.starts_with("refs/pr/") { "refs/pr/".len() } else { 0 };
    let end = text[skipped..].find('/').map_or(text.len(), |at| skipped + at);
    text.split_at(end)
}

fn is_plain_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 128 && name != "." && !name.contains("..") && name.chars().all(allowed)
}

/// A path that stays below the folder it is joined to, on every system.
pub(crate) fn is_plain_path(path: &str) -> bool {
    let sane = path.len() <= 1024
        && !path.contains(['\\', ':', '?', '#', '%'])
        && !path.chars().any(char::is_control);
    sane && !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Files that stand beside the weights and are wanted where they exist.
const COMPANIONS: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// What to have on disk for a model, and what then is the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selection {
    pub files: Vec<String>,
    /// The file to load, or the folder itself.
    pub primary: Option<String>,
}

/// Chooses from the files that a repository (or a cached copy of one) has.
pub(crate) fn select(address: &HubAddress, listing: &[String]) -> Result<Selection, StoreError> {
    match &address.file {
        Some(file) => select_file(address, file, listing),
        None => select_model(address, listing),
    }
}

fn select_file(address: &HubAddress, file: &str, listing: &[String]) -> Result<Selection, StoreError> {
    if !listing.iter().any(|name| name == file) {
        return Err(StoreError::HubNotFound {
            what: format!("{file} in {}", address.shown()),
            listing: shown_listing(listing),
        });
    }
    let mut files = with_all_parts(address, file, listing)?;
    let primary = files.first().cloned();
    if file.ends_with(".safetensors") {
        files.extend(companions(listing));
    }
    Ok(Selection { files, primary })
}

fn select_model(address: &HubAddress, listing: &[String]) -> Result<Selection, StoreError> {
    let weights = safetensors_files(address, listing)?;
    if !weights.is_empty() {
        let index = "model.safetensors.index.json".to_owned();
        let is_sharded = weights.len() > 1 && listing.contains(&index);
        let files =
            companions(listing).into_iter().chain(is_sharded.then_some(index)).chain(weights).collect();
        return Ok(Selection { files, primary: None });
    }
    let mut models: Vec<&String> = listing.iter().filter(|name| is_gguf_model(name)).collect();
    models.sort();
    match models.as_slice() {
        [] => Err(StoreError::HubNoModel { repo: address.shown(), listing: shown_listing(listing) }),
        [only] => {
            let files = with_all_parts(address, only, listing)?;
            Ok(Selection { primary: files.first().cloned(), files })
        }
        several => {
            let files = several.iter().map(|name| (*name).clone()).collect();
            Err(StoreError::HubAmbiguous { repo: address.shown(), files })
        }
    }
}

/// The weights at the top level. Repositories may carry the same weights twice (an original checkpoint
/// beside the converted one, adapters, optimiser state): the conventional names win.
fn safetensors_files(address: &HubAddress, listing: &[String]) -> Result<Vec<String>, StoreError> {
    let single = "model.safetensors".to_owned();
    if listing.contains(&single) {
        return Ok(vec![single]);
    }
    let top: Vec<&String> =
        listing.iter().filter(|n| n.ends_with(".safetensors") && !n.contains('/')).collect();
    if let Some(shard) = top.iter().find(|name| name.starts_with("model-") && split_name(name).is_some()) {
        return with_all_parts(address, shard, listing);
    }
    Ok(top.into_iter().cloned().collect())
}

fn companions(listing: &[String]) -> Vec<String> {
    // RWKV repositories keep their vocabulary in a text file of that name.
    let is_vocabulary =
        |name: &str| name.starts_with("rwkv_vocab") && name.ends_with(".txt") && !name.contains('/');
    let wanted = |name: &&String| COMPANIONS.contains(&name.as_str()) || is_vocabulary(name);
    listing.iter().filter(wanted).cloned().collect()
}

/// Projectors and importance matrices are GGUF files but no models; of a split model the first part stands
/// for all.
fn is_gguf_model(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    let is_later_part = split_name(&name).is_some_and(|split| split.part != 1);
    name.ends_with(".gguf") && !name.starts_with("mmproj") && !name.contains("imatrix") && !is_later_part
}

struct SplitName<'a> {
    stem: &'a str,
    part: u32,
    parts: u32,
    extension: &'a str,
}

/// Recognises `stem-00001-of-00003.ext`.
fn split_name(name: &str) -> Option<SplitName<'_>> {
    let (rest, extension) = name.rsplit_once('.')?;
    let (rest, parts) = rest.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |digits: &str| {
        let five_digits = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        five_digits.then(|| digits.parse::<u32>().ok()).flatten()
    };
    Some(SplitName { stem, part: number(part)?, parts: number(parts)?, extension })
}

/// `file`, or every part of the split model that it is a part of. A part that the listing lacks is an error.
fn with_all_parts(address: &HubAddress, file: &str, listing: &[String]) -> Result<Vec<String>, StoreError> {
    let Some(split) = split_name(file) else { return Ok(vec![file.to_owned()]) };
    let mut names = Vec::new();
    for part in 1..=split.parts {
        let name = format!("{}-{part:05}-of-{:05}.{}", split.stem, split.parts, split.extension);
        if !listing.contains(&name) {
            let what = format!("{name} in {}, a part of {file}", address.shown());
            return Err(StoreError::HubNotFound { what, listing: String::new() });
        }
        names.push(name);
    }
    Ok(names)
}

fn shown_listing(listing: &[String]) -> String {
    const MOST: usize = 30;
    if listing.is_empty() {
        return " It has no files that could be used".to_owned();
    }
    let more = if listing.len() > MOST { ", …" } else { "" };
    let some: Vec<&str> = listing.iter().take(MOST).map(String::as_str).collect();
    format!(" It has: {}{more}", some.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn repo() -> HubAddress {
        HubAddress::parse("hf:org/repo").expect("an address")
    }

    #[test]
    fn addresses() {
        let full = HubAddress::parse("hf:a-b/c.d@v1.0/sub/x.gguf").expect("an address");
        assert_eq!((full.repo.as_str(), full.revision.as_str()), ("a-b/c.d", "v1.0"));
        assert_eq!(full.file.as_deref(), Some("sub/x.gguf"));
        let pr = HubAddress::parse("hf:o/r@refs/pr/7/x.gguf").expect("an address");
        assert_eq!((pr.revision.as_str(), pr.file.as_deref()), ("refs/pr/7", Some("x.gguf")));
        assert_eq!(repo().revision, "main");
        for wrong in
            ["hf:", "hf:repo", "hf:/r", "hf:o/", "hf:../r", "hf:o/r/../x", "hf:o/r//etc", "hf:o/r@/x", "o/r"]
        {
            assert!(HubAddress::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn safetensors_come_with_their_companions_and_without_duplicates() {
        let listing = names(&[
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "tokenizer.json",
        ]);
        let chosen = select(&repo(), &listing).expect("a model");
        let expected = ["config.json", "tokenizer.json", "model.safetensors.index.json"];
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        assert_eq!(chosen, Selection { files: names(&[&expected[..], &shards[..]].concat()), primary: None });
        let torn: Vec<String> = listing.into_iter().filter(|name| !name.contains("00002-of")).collect();
        let error = select(&repo(), &torn).expect_err("a shard is missing").to_string();
        assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
    }

    #[test]
    fn one_gguf_is_taken_several_are_listed() {
        let one = select(&repo(), &names(&["a.gguf", "mmproj-a.gguf", "imatrix.gguf"])).expect("a model");
        assert_eq!(one.primary.as_deref(), Some("a.gguf"));
        let split = names(&["q/b-00001-of-00002.gguf", "q/b-00002-of-00002.gguf"]);
        let chosen = select(&repo(), &split).expect("a model");
        assert_eq!(chosen, Selection { primary: Some(split[0].clone()), files: split });
        let error = select(&repo(), &names(&["a.gguf", "b.gguf"])).expect_err("ambiguous").to_string();
        assert!(error.contains("hf:org/repo/a.gguf") && error.contains("hf:org/repo/b.gguf"), "{error}");
        assert!(matches!(select(&repo(), &names(&["README.md"])), Err(StoreError::HubNoModel { .. })));
    }

    #[test]
    fn a_repository_without_usable_names_is_said_to_be_empty() {
        let error = |address: &str| {
            let address = HubAddress::parse(address).expect("an address");
            select(&address, &[]).expect_err("nothing there").to_string()
        };
        for text in [error("hf:org/repo"), error("hf:org/repo/a.gguf")] {
            assert!(
                text.ends_with(" It has no files that could be used") && !text.contains("has:"),
                "{text}"
            );
        }
    }

    #[test]
    fn hostile_paths_are_not_plain() {
        for hostile in ["", "../x", "/etc/x", "a/../../x", "C:\\x", "a\\b", "a\nb", "a?b", "%2e%2e/x"] {
            assert!(!is_plain_path(hostile), "{hostile:?}");
        }
        assert!(is_plain_path("sub/model-00001-of-00002.gguf"));
    }
}
