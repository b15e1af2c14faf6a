//! Stop strings, which may begin in one piece of text and end in a later one.

/// Holds back text that could still turn into a stop string, and ends at the first one that is complete.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// Empty stop strings are left out: they would end every answer before it begins.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let stops = stops.into_iter().map(Into::into).filter(|stop: &String| !stop.is_empty()).collect();
        Self { stops, held: String::new(), stopped: None }
    }

    /// Takes the next text and gives back what may be shown now. Once [`stopped`](Self::stopped), always nothing.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.held.push_str(text);
        let found =
            self.stops.iter().enumerate().filter_map(|(i, stop)| Some((self.held.find(stop)?, i))).min();
        if let Some((at, which)) = found {
            self.stopped = Some(which);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.could_become_a_stop();
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    pub fn stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The stop string that ended the text.
    pub fn matched(&self) -> Option<&str> {
        self.stopped.and_then(|which| self.stops.get(which)).map(String::as_str)
    }

    /// How many bytes at the end are the beginning of some stop string.
    fn could_become_a_stop(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0).saturating_sub(1);
        (1..=longest.min(self.held.len()))
            .rev()
            .filter(|&len| self.held.is_char_boundary(self.held.len() - len))
            .find(|&len| {
                let tail = &self.held[self.held.len() - len..];
                self.stops.iter().any(|stop| stop.starts_with(tail))
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let mut matcher = StopMatcher::new(stops.iter().copied());
        let mut shown: Vec<String> = pieces.iter().map(|piece| matcher.push(piece)).collect();
        shown.push(matcher.finish());
        (shown, matcher.matched().map(str::to_owned))
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_shown() {
        assert_eq!(run(&["END"], &["say E", "N", "D more"]).0, ["say ", "", "", ""]);
        assert_eq!(run(&["END"], &["say E", "N", "d"]).0, ["say ", "", "ENd", ""]);
        assert_eq!(
            run(&["\n\n", "\nQ"], &["a\n", "Q"]),
            (vec!["a".into(), "".into(), "".into()], Some("\nQ".into()))
        );
        assert_eq!(run(&[""], &["a"]).0, ["a", ""]);
        assert_eq!(run(&["aab"], &["aa", "ab"]).0, ["", "a", ""]);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[abé]{0,30}", stop in "[abé]{1,4}", cut in 1usize..4) {
            let mut matcher = StopMatcher::new([stop.clone()]);
            let chars: Vec<char> = text.chars().collect();
            let mut shown: String = chars.chunks(cut).map(|c| matcher.push(&c.iter().collect::<String>())).collect();
            shown.push_str(&matcher.finish());
            let expected = text.split(stop.as_str()).next().unwrap_or("");
            prop_assert_eq!(shown, expected);
            prop_assert_eq!(matcher.stopped(), text.contains(&stop));
        }
    }
}
