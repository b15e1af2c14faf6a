//! Things in the order in which they were last used.

/// Numbers under a limit, each in the list at most once; the oldest is at the front. Nothing is allocated but at first.
pub(crate) struct Lru {
    /// Neighbours of each number, and of the list's ends in the last place.
    links: Vec<Link>,
    len: usize,
}

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

/// The neighbour of a number that is not in the list.
const NOWHERE: u32 = u32::MAX;

impl Lru {
    pub fn new(limit: usize) -> Lru {
        let mut links = vec![Link { before: NOWHERE, after: NOWHERE }; limit + 1];
        links[limit] = Link { before: limit as u32, after: limit as u32 };
        Lru { links, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn contains(&self, number: u32) -> bool {
        self.links[number as usize].after != NOWHERE
    }

    /// Puts a number that is not in the list behind all others.
    pub fn push(&mut self, number: u32) {
        debug_assert!(!self.contains(number), "{number} is in the list already");
        let ends = self.links.len() - 1;
        let last = self.links[ends].before;
        self.links[number as usize] = Link { before: last, after: ends as u32 };
        self.links[last as usize].after = number;
        self.links[ends].before = number;
        self.len += 1;
    }

    /// Takes a number out, if it is in.
    pub fn remove(&mut self, number: u32) {
        let Link { before, after } = self.links[number as usize];
        if after == NOWHERE {
            return;
        }
        self.links[before as usize].after = after;
        self.links[after as usize].before = before;
        self.links[number as usize] = Link { before: NOWHERE, after: NOWHERE };
        self.len -= 1;
    }

    /// The numbers from the oldest on, link by link. Links that lead nowhere end it.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let ends = self.links.len() - 1;
        let at = |number: u32| self.links.get(number as usize).map(|link| link.after);
        let first = Some(self.links[ends].after);
        std::iter::successors(first, move |&number| at(number))
            .take_while(move |&number| (number as usize) < ends)
            // A ring that never comes back to its end would go on for ever.
            .take(ends + 1)
    }

    /// Takes out the number that was put in before all others.
    pub fn pop(&mut self) -> Option<u32> {
        let ends = self.links.len() - 1;
        let oldest = self.links[ends].after;
        if oldest as usize == ends {
            return None;
        }
        self.remove(oldest);
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_comes_first() {
        let mut lru = Lru::new(4);
        assert_eq!(lru.pop(), None);
        [2, 0, 3, 1].into_iter().for_each(|n| lru.push(n));
        lru.remove(0);
        lru.remove(0);
        lru.remove(2);
        lru.push(2);
        assert!(lru.contains(2) && !lru.contains(0) && lru.len() == 3);
        assert_eq!(lru.iter().collect::<Vec<_>>(), [3, 1, 2]);
        assert_eq!([lru.pop(), lru.pop(), lru.pop(), lru.pop()], [Some(3), Some(1), Some(2), None]);
        assert_eq!(Lru::new(0).pop(), None);
    }
}
