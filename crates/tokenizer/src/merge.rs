//! Joining neighbouring symbols, best pair first: the heart of both BPE and SentencePiece.
//!
//! Every candidate pair waits in a heap. Joining a pair makes at most two new candidates, so a text of n symbols
//! costs O(n log n) however long its words are. A candidate whose symbols changed since is recognised by the length
//! it was made for and dropped.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The absence of a neighbour or of a token.
pub(crate) const NONE: u32 = u32::MAX;

/// A stretch of the text that is, or may become, one token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Symbol {
    pub(crate) start: u32,
    pub(crate) len: u32,
    /// The token of these bytes, or [`NONE`].
    pub(crate) id: u32,
    prev: u32,
    next: u32,
}

impl Symbol {
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

/// A pair that could be joined. Ordered by priority (lower first), then from left to right.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    priority: u32,
    left: u32,
    right: u32,
    len: u32,
    id: u32,
}

/// Symbols and heap of one text, kept between texts so that their memory is reused.
#[derive(Default)]
pub(crate) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    pub(crate) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Appends the next symbol of the text; `id` is [`NONE`] if its bytes are no token.
    pub(crate) fn push(&mut self, start: usize, len: usize, id: u32) {
        let index = self.symbols.len() as u32;
        let prev = index.checked_sub(1).unwrap_or(NONE);
        if let Some(last) = self.symbols.last_mut() {
            last.next = index;
        }
        self.symbols.push(Symbol { start: start as u32, len: len as u32, id, prev, next: NONE });
    }

    /// Joins until no pair is left. `join` says which token a pair makes and how urgent that is.
    pub(crate) fn run(&mut self, join: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        for left in 1..self.symbols.len() as u32 {
            self.consider(left - 1, left, &join);
        }
        while let Some(Reverse(best)) = self.heap.pop() {
            let (left, right) = (self.symbols[best.left as usize], self.symbols[best.right as usize]);
            if left.len == 0 || right.len == 0 || left.len + right.len != best.len {
                continue;
            }
            self.symbols[best.right as usize].len = 0;
            if right.next != NONE {
                self.symbols[right.next as usize].prev = best.left;
            }
            let joined = &mut self.symbols[best.left as usize];
            joined.len = best.len;
            joined.id = best.id;
            joined.next = right.next;
            self.consider(left.prev, best.left, &join);
            self.consider(best.left, right.next, &join);
        }
    }

    fn consider(&mut self, left: u32, right: u32, join: &impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        if left == NONE || right == NONE {
            return;
        }
        let (a, b) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some((priority, id)) = join(a, b) {
            self.heap.push(Reverse(Candidate { priority, left, right, len: a.len + b.len, id }));
        }
    }

    /// The symbols that are left, in the order of the text.
    pub(crate) fn result(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }
}
