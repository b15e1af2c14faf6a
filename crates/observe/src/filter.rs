//! Which events somebody wants to see: as much of `RUST_LOG` as there are events for.

/// Whether a filter lets traces of `target` through: `trace` for everything, `exotherm=trace` or `exotherm` for one
/// target and what is below it, several with commas between them, of which the nearest to the target counts. Other
/// levels show less than traces; what cannot be understood, and regular expressions, show nothing.
pub fn traces(filter: &str, target: &str) -> bool {
    shows(filter, target, "trace")
}

/// Whether a filter lets events of `target` through that are of this level, in the same way.
pub fn shows(filter: &str, target: &str, event: &str) -> bool {
    let rank = |level: &str| LEVELS.iter().position(|known| known.eq_ignore_ascii_case(level));
    let mut nearest: Option<(usize, bool)> = None;
    for directive in filter.split(',').map(str::trim).filter(|d| !d.is_empty()) {
        let (name, level) = match directive.split_once('=') {
            Some((name, level)) => (name.trim(), Some(level.trim())),
            None if is_level(directive) => ("", Some(directive)),
            None => (directive, None),
        };
        // A target alone is one at every level.
        let shown = level.is_none_or(|level| rank(level).is_some_and(|least| Some(least) >= rank(event)));
        if covers(name, target) && nearest.is_none_or(|(length, _)| name.len() >= length) {
            nearest = Some((name.len(), shown));
        }
    }
    nearest.is_some_and(|(_, shown)| shown) && !filter.contains('/')
}

/// The first part of a filter that means nothing here, and so shows nothing.
pub fn not_understood(filter: &str) -> Option<&str> {
    // What comes after a slash is a regular expression.
    if filter.contains('/') {
        return Some(filter);
    }
    let is_name = |name: &str| name.chars().all(|c| c.is_alphanumeric() || "_-:.".contains(c));
    let mut directives = filter.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    directives.find(|directive| match directive.split_once('=') {
        Some((name, level)) => !is_name(name.trim()) || !is_level(level.trim()),
        None => !is_name(directive),
    })
}

/// From nothing to everything.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn is_level(text: &str) -> bool {
    LEVELS.iter().any(|level| text.eq_ignore_ascii_case(level))
}

fn covers(name: &str, target: &str) -> bool {
    target.strip_prefix(name).is_some_and(|rest| name.is_empty() || rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_mean_what_they_mean_elsewhere() {
        let on = [
            "trace",
            "TRACE",
            "exotherm=trace",
            "exotherm",
            "exotherm::attn=trace",
            "info,exotherm=trace",
            " exotherm = trace , hyper=debug",
            "exotherm=debug,exotherm=trace",
            "exotherm=trace,info",
            "off,exotherm::attn",
        ];
        let off = [
            "",
            "debug",
            "off",
            "exotherm=debug",
            "exotherm=",
            "exotherm=loud",
            "exothermic=trace",
            "other=trace",
            "trace,exotherm=info",
            "exotherm=trace,exotherm::attn=off",
            "exotherm=trace/layer=1",
            "exotherm::ops=trace",
            "=,=",
        ];
        on.iter().for_each(|filter| assert!(traces(filter, "exotherm::attn"), "{filter:?}"));
        off.iter().for_each(|filter| assert!(!traces(filter, "exotherm::attn"), "{filter:?}"));
    }

    #[test]
    fn what_means_nothing_is_found() {
        for filter in ["", "trace", "exotherm", "hyper=debug,exotherm::attn=TRACE", " a-b = off ,, c.d"] {
            assert_eq!(not_understood(filter), None, "{filter:?}");
        }
        let wrong = [
            ("exotherm=trace,[", "["),
            ("exotherm=loud", "exotherm=loud"),
            ("info,a=", "a="),
            ("a/b", "a/b"),
        ];
        for (filter, part) in wrong {
            assert_eq!(not_understood(filter), Some(part), "{filter:?}");
        }
    }

    #[test]
    fn a_level_shows_those_above_it() {
        for filter in ["info", "exotherm=info", "exotherm=debug", "exotherm::http=trace", "warn,exotherm"] {
            assert!(shows(filter, "exotherm::http", "info"), "{filter:?}");
        }
        for filter in ["", "off", "warn", "exotherm=error", "exotherm=loud", "info,exotherm=off"] {
            assert!(!shows(filter, "exotherm::http", "info"), "{filter:?}");
        }
    }
}
