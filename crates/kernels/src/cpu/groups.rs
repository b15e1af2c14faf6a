//! Groups of rows: activations of eight rows lie interleaved, so that a kernel reads one stream of them, whatever the
//! width of a row. What is left after the last eight rows makes a group of eight, four or one of its own. A row's
//! elements are floats, or words with a pair of BF16 each.

use super::rows::Rows;

/// Rows of a group.
pub(super) const GROUP: usize = 8;

/// How many rows a group that must hold `rows` has.
pub(super) fn group_rows(rows: usize) -> usize {
    match rows {
        0 | 1 => rows,
        2..=4 => 4,
        _ => GROUP,
    }
}

/// Rows that `rows` rows take up, those included that only fill a group.
pub(super) fn room_for(rows: usize) -> usize {
    (rows / GROUP * GROUP).saturating_add(group_rows(rows % GROUP))
}

/// Rows in groups: in a group, a column's elements of all its rows lie together.
#[derive(Clone, Copy)]
pub(crate) struct Groups<'a, T> {
    data: &'a [T],
    /// Columns that the groups have, the first that is meant, and how many are.
    stride: usize,
    at: usize,
    width: usize,
    rows: usize,
}

pub(crate) type FloatRows<'a> = Groups<'a, f32>;
/// The first activation of a pair is in the low half of its word.
pub(crate) type PairRows<'a> = Groups<'a, u32>;

impl<'a, T: Copy> Groups<'a, T> {
    /// Groups that `interleave` wrote.
    pub fn new(data: &'a [T], width: usize, rows: usize) -> Groups<'a, T> {
        Groups { data, stride: width, at: 0, width, rows }
    }

    pub fn none() -> Groups<'a, T> {
        Groups::new(&[], 0, 0)
    }

    /// A row alone is its own group.
    pub fn one(row: &'a [T]) -> Groups<'a, T> {
        Groups::new(row, row.len(), 1)
    }

    /// Elements `at..at + width` of every row.
    pub fn columns(self, at: usize, width: usize) -> Groups<'a, T> {
        assert!(at + width <= self.width);
        Groups { at: self.at + at, width, ..self }
    }

    pub fn len(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// The columns of the group that row `first`, a multiple of eight, begins, how many rows it has and how many of
    /// them are used.
    #[inline(always)]
    pub fn group(&self, first: usize) -> (&'a [T], usize, usize) {
        let used = (self.rows - first).min(GROUP);
        let members = group_rows(used);
        (&self.data[first * self.stride + self.at * members..][..self.width * members], members, used)
    }
}

impl<'a> FloatRows<'a> {
    /// These rows in groups; `out` has room for them all.
    pub fn gathered(rows: Rows<'a>, out: &'a mut [f32]) -> FloatRows<'a> {
        let n = rows.len();
        if n == 1 {
            return FloatRows::one(rows.row(0));
        }
        let width = if n == 0 { 0 } else { rows.row(0).len() };
        for first in (0..n).step_by(GROUP) {
            let members = group_rows((n - first).min(GROUP));
            let group = &mut out[first * width..][..members * width];
            for member in 0..members {
                match first + member < n {
                    true => interleave(rows.row(first + member), group, members, member),
                    false => group.iter_mut().skip(member).step_by(members).for_each(|x| *x = 0.0),
                }
            }
        }
        FloatRows::new(out, width, n)
    }
}

/// Writes row `member` of a group of `members` rows.
pub(super) fn interleave<T: Copy>(row: &[T], group: &mut [T], members: usize, member: usize) {
    for (to, from) in group.chunks_exact_mut(members).zip(row) {
        to[member] = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_what_rows_hold() {
        let width = 7;
        let x: Vec<f32> = (0..20 * width).map(|i| i as f32).collect();
        let index = [3, 9, 0, 1, 19, 4, 4, 8, 2, 7, 6, 5];
        for n in 1..=index.len() {
            let rows = Rows::new(&x, width, width, 20).picked(&index[..n]);
            let mut out = vec![f32::NAN; room_for(n) * width];
            let groups = FloatRows::gathered(rows, &mut out).columns(2, 4);
            assert_eq!(groups.len(), n);
            for first in (0..n).step_by(GROUP) {
                let (group, members, used) = groups.group(first);
                assert_eq!((group.len(), used), (4 * members, (n - first).min(GROUP)));
                for (c, column) in group.chunks(members).enumerate() {
                    for (r, have) in column.iter().enumerate() {
                        let want = if r < used { rows.row(first + r)[2 + c] } else { 0.0 };
                        assert_eq!(*have, want, "{n} rows, row {}, column {c}", first + r);
                    }
                }
            }
        }
    }
}
