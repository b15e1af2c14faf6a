//! Numbers that no earlier request had.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// A name for a request or an answer.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{:016x}", number())
}

/// A seed for a request that gives none, small enough to be typed again.
pub fn seed() -> u64 {
    number() >> 32
}

/// The standard library keys its hash tables with what the system's generator gives it; so are these numbers.
fn number() -> u64 {
    static KEY: std::sync::LazyLock<RandomState> = std::sync::LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    KEY.hash_one(COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_do_not_repeat() {
        let seen: std::collections::HashSet<String> = (0..1000).map(|_| unique("x")).collect();
        assert_eq!(seen.len(), 1000);
        assert!(seed() <= u64::from(u32::MAX));
    }
}
