//! Where things are, from the environment.

use std::ffi::OsString;
use std::path::PathBuf;

use super::hub::HubConfig;

/// Reads one variable; a parameter so that tests need not change the process's environment.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

fn path(lookup: Lookup, key: &str) -> Option<PathBuf> {
    lookup(key).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn home(lookup: Lookup) -> Option<PathBuf> {
    path(lookup, "HOME").or_else(|| path(lookup, "USERPROFILE"))
}

/// `EXOTHERM_HOME`, else the system's folder for caches.
pub(crate) fn store_root(lookup: Lookup) -> Option<PathBuf> {
    let named = path(lookup, "EXOTHERM_HOME");
    let below_cache = || {
        let cache = if cfg!(windows) {
            path(lookup, "LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            home(lookup).map(|home| home.join("Library/Caches"))
        } else {
            // The XDG rules call a relative path invalid.
            let xdg = path(lookup, "XDG_CACHE_HOME").filter(|path| path.is_absolute());
            xdg.or_else(|| home(lookup).map(|home| home.join(".cache")))
        };
        cache.map(|cache| cache.join("exotherm"))
    };
    named.or_else(below_cache)
}

/// The variables that Python's `huggingface_hub` reads, with the same meaning.
pub(crate) fn hub_config(lookup: Lookup) -> HubConfig {
    let hub_home = path(lookup, "HF_HOME").or_else(|| {
        let cache = path(lookup, "XDG_CACHE_HOME").or_else(|| home(lookup).map(|home| home.join(".cache")));
        cache.map(|cache| cache.join("huggingface"))
    });
    let hub_home = hub_home.unwrap_or_else(|| std::env::temp_dir().join("huggingface"));
    let text = |key: &str| {
        let value = lookup(key)?.into_string().ok()?.trim().to_owned();
        (!value.is_empty()).then_some(value)
    };
    let token_path = path(lookup, "HF_TOKEN_PATH").unwrap_or_else(|| hub_home.join("token"));
    let stored_token = || {
        let token = std::fs::read_to_string(token_path).ok()?.trim().to_owned();
        (!token.is_empty()).then_some(token)
    };
    let is_true = |value: String| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on");
    HubConfig {
        endpoint: text("HF_ENDPOINT"),
        cache: path(lookup, "HF_HUB_CACHE").unwrap_or_else(|| hub_home.join("hub")),
        token: text("HF_TOKEN").or_else(stored_token),
        offline: text("HF_HUB_OFFLINE").is_some_and(is_true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<OsString> {
        move |key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| value.into())
    }

    #[test]
    fn the_root_is_the_first_that_is_set() {
        let root = |pairs| store_root(&lookup(pairs));
        assert_eq!(root(&[("EXOTHERM_HOME", "/x"), ("HOME", "/h")]), Some("/x".into()));
        assert_eq!(root(&[]), None);
        if cfg!(all(unix, not(target_os = "macos"))) {
            assert_eq!(root(&[("XDG_CACHE_HOME", "/c"), ("HOME", "/h")]), Some("/c/exotherm".into()));
            assert_eq!(root(&[("XDG_CACHE_HOME", "c"), ("HOME", "/h")]), Some("/h/.cache/exotherm".into()));
            assert_eq!(root(&[("EXOTHERM_HOME", ""), ("HOME", "/h")]), Some("/h/.cache/exotherm".into()));
        }
    }

    #[test]
    fn the_hub_is_configured_as_in_python() {
        let config = hub_config(&lookup(&[
            ("HF_HOME", "/hf"),
            ("HF_TOKEN", " t0k "),
            ("HF_ENDPOINT", "http://mirror"),
            ("HF_HUB_OFFLINE", "ON"),
        ]));
        assert_eq!(config.cache, PathBuf::from("/hf/hub"));
        assert_eq!(config.token.as_deref(), Some("t0k"));
        assert_eq!(config.endpoint.as_deref(), Some("http://mirror"));
        assert!(config.offline);
        let plain = hub_config(&lookup(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]));
        assert_eq!(plain.cache, PathBuf::from("/h/.cache/huggingface/hub"));
        assert!(!plain.offline && plain.endpoint.is_none());
    }

    #[test]
    fn the_token_may_lie_in_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token"), "from-file\n").expect("written");
        let path = folder.path().as_os_str().to_owned();
        let config = hub_config(&move |key| (key == "HF_HOME").then(|| path.clone()));
        assert_eq!(config.token.as_deref(), Some("from-file"));
    }
}
