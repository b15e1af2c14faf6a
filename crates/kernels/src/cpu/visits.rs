//! Which rows visit which expert: the routes of a step, sorted by expert.

use std::ops::Range;

use super::pack::Packer;
use super::rows::Rows;

/// Every lane sorts them for itself: that is cheaper than a barrier.
pub(crate) struct Visits<'a> {
    /// Where each expert's visits begin, and where the last one's end.
    starts: &'a [u32],
    rows: &'a [u32],
    /// Which of the row's choices the visit is.
    choices: &'a [u32],
    /// row · top_k + choice
    pairs: &'a [u32],
}

impl<'a> Visits<'a> {
    /// Takes the scratch that `sorted` needs.
    pub fn need(packer: &mut Packer, experts: usize, top_k: usize) {
        let rows = packer.max_rows();
        packer.need(|s| &mut s.words, &[experts.saturating_add(rows).saturating_add(2), top_k.max(1), 3]);
    }

    pub fn sorted(routes: Rows, top_k: usize, experts: usize, words: &'a mut [u32]) -> Visits<'a> {
        let pairs = routes.len() * top_k;
        let (starts, rest) = words.split_at_mut(experts + 1);
        let (rows, rest) = rest.split_at_mut(pairs);
        let (choices, rest) = rest.split_at_mut(pairs);
        let pair_numbers = &mut rest[..pairs];
        let chosen = |row: usize, choice: usize| routes.row(row)[choice] as usize;
        starts.fill(0);
        let all = || (0..routes.len()).flat_map(|row| (0..top_k).map(move |choice| (row, choice)));
        all().for_each(|(row, choice)| starts[chosen(row, choice)] += 1);
        // Counts become the ends of the experts' parts; filling them from behind moves them to the beginnings.
        let mut end = 0;
        for start in starts.iter_mut() {
            end += *start;
            *start = end;
        }
        for (row, choice) in all().rev() {
            let start = &mut starts[chosen(row, choice)];
            *start -= 1;
            let at = *start as usize;
            (rows[at], choices[at]) = (row as u32, choice as u32);
            pair_numbers[at] = (row * top_k + choice) as u32;
        }
        Visits { starts, rows, choices, pairs: pair_numbers }
    }

    fn range(&self, expert: usize) -> Range<usize> {
        self.starts[expert] as usize..self.starts[expert + 1] as usize
    }

    /// The rows that visit an expert, and which of their choices it is.
    pub fn of(&self, expert: usize) -> (&'a [u32], &'a [u32]) {
        (&self.rows[self.range(expert)], &self.choices[self.range(expert)])
    }

    pub fn pairs(&self, expert: usize) -> &'a [u32] {
        &self.pairs[self.range(expert)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_by_expert() {
        let routes = [2.0, 0.0, 0.5, 0.5, 2.0, 1.0, 0.5, 0.5, 0.0, 2.0, 0.5, 0.5];
        let mut words = [7; 40];
        let visits = Visits::sorted(Rows::new(&routes, 4, 4, 3), 2, 4, &mut words);
        assert_eq!(visits.of(0), (&[0, 2][..], &[1, 0][..]));
        assert_eq!(visits.of(1), (&[1][..], &[1][..]));
        assert_eq!(visits.of(2), (&[0, 1, 2][..], &[0, 0, 1][..]));
        assert_eq!(visits.pairs(2), [0, 2, 5]);
        assert!(visits.of(3).0.is_empty());
    }
}
