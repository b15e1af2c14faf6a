//! The books gone through block by block: what is counted is compared with what is there.

use std::fmt;

use super::BlockPool;

/// Where a block was come across.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    Nowhere,
    Free,
    Cached,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Found::Nowhere => "nowhere",
            Found::Free => "free",
            Found::Cached => "cached",
        })
    }
}

impl BlockPool {
    /// Walks the free list, the cache and all tables. Says what is wrong where a block is in two states or in none, has
    /// other holders than it counts, or has content that cannot be found; or where the numbers of the books are not those of
    /// the blocks.
    pub fn audit<'a>(&self, tables: impl Iterator<Item = &'a [u32]>) -> Result<(), String> {
        let mut found = vec![Found::Nowhere; self.blocks.len()];
        let free = self.free.iter().map(|&block| (block, Found::Free));
        for (block, state) in free.chain(self.cached.iter().map(|block| (block, Found::Cached))) {
            match found.get_mut(block as usize) {
                None => return Err(format!("there is no block {block}")),
                Some(at @ Found::Nowhere) => *at = state,
                Some(before) => return Err(format!("block {block} is {before} and {state}")),
            }
        }
        let mut holders = vec![0u32; self.blocks.len()];
        for &block in tables.flatten() {
            *holders.get_mut(block as usize).ok_or_else(|| format!("there is no block {block}"))? += 1;
        }
        for (number, (&found, &held)) in found.iter().zip(&holders).enumerate() {
            self.audit_block(number, found, held)?;
        }
        let count = |state| found.iter().filter(|&&found| found == state).count();
        let walked =
            [count(Found::Free), holders.iter().filter(|&&held| held > 0).count(), count(Found::Cached)];
        let books = self.books();
        if walked != [books.free, books.used, books.cached] || !books.balance() {
            return Err(format!("{walked:?} blocks are free, used and cached, the books say {books:?}"));
        }
        let with_content = self.blocks.iter().filter(|block| block.content.is_some()).count();
        if self.by_name.len() != with_content {
            return Err(format!("{} names lead to {with_content} blocks", self.by_name.len()));
        }
        Ok(())
    }

    fn audit_block(&self, number: usize, found: Found, held: u32) -> Result<(), String> {
        let block = &self.blocks[number];
        if block.holders != held {
            return Err(format!("block {number} counts {} holders and has {held}", block.holders));
        }
        let is_named = |name| self.by_name.get(name) == Some(&(number as u32));
        if block.content.as_ref().is_some_and(|content| !is_named(&content.name)) {
            return Err(format!("block {number} has content that cannot be found"));
        }
        match (found, held, &block.content) {
            (Found::Nowhere, 0, _) => Err(format!("block {number} is lost")),
            (Found::Free | Found::Cached, 1.., _) => Err(format!("block {number} is {found} and in use")),
            (Found::Free, 0, Some(_)) => Err(format!("block {number} is free and has content")),
            (Found::Cached, 0, None) => Err(format!("block {number} is cached and has no content")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use exotherm_kernels::BLOCK;

    use super::super::{Books, PrefixId};
    use super::*;

    /// A pool of six: 0 free and never used, 1 and 2 cached, 3 in two tables and registered, 4 and 5 in a table each.
    struct Case {
        pool: BlockPool,
        tables: Vec<Vec<u32>>,
    }

    impl Case {
        fn new() -> Case {
            let mut pool = BlockPool::new(6);
            let [a, b, c, d, e] = std::array::from_fn(|_| pool.take().unwrap());
            let mut before = PrefixId::EMPTY;
            for (name, block) in [a, b, c].into_iter().enumerate() {
                before = pool.register(block, name as u64, before, &[name as u32; BLOCK]).unwrap().1;
            }
            pool.release_all(&mut vec![a, b]);
            pool.hold(c);
            Case { pool, tables: vec![vec![c, d], vec![c, e]] }
        }

        fn audit(&self) -> Result<(), String> {
            self.pool.audit(self.tables.iter().map(Vec::as_slice))
        }

        fn free(&self) -> u32 {
            self.pool.free[0]
        }

        fn cached(&self) -> u32 {
            self.pool.cached.iter().next().unwrap()
        }

        fn shared(&self) -> u32 {
            self.tables[0][0]
        }

        fn own(&self) -> u32 {
            self.tables[0][1]
        }
    }

    /// A way to spoil the books, and a word of what must be said about it.
    type Corruption = (&'static str, fn(&mut Case));

    const CORRUPTIONS: [Corruption; 17] = [
        ("free and free", |case| case.pool.free.push(case.free())),
        ("free and cached", |case| case.pool.cached.push(case.free())),
        ("free and cached", |case| case.pool.free.push(case.cached())),
        ("free and in use", |case| case.pool.free.push(case.own())),
        ("cached and in use", |case| case.pool.cached.push(case.shared())),
        ("lost", |case| {
            case.pool.free.pop();
        }),
        ("lost", |case| {
            case.pool.cached.pop();
        }),
        ("counts 2 holders and has 1", |case| {
            case.tables[1].remove(0);
        }),
        ("counts 1 holders and has 2", |case| {
            let own = case.own();
            case.tables[1].push(own);
        }),
        ("counts 3 holders and has 2", |case| {
            let shared = case.shared() as usize;
            case.pool.blocks[shared].holders += 1;
        }),
        ("cannot be found", |case| case.pool.by_name.clear()),
        ("cannot be found", |case| {
            let name = case.pool.blocks[case.cached() as usize].content.as_ref().unwrap().name;
            case.pool.by_name.insert(name, case.free());
        }),
        ("names lead to", |case| {
            case.pool.by_name.insert(77, case.free());
        }),
        ("cached and has no content", |case| {
            let cached = case.cached();
            case.pool.forget(cached);
        }),
        ("free and has content", |case| {
            let cached = case.cached();
            case.pool.cached.remove(cached);
            case.pool.free.push(cached);
        }),
        ("the books say", |case| case.pool.used += 1),
        ("no block 6", |case| case.tables[0].push(6)),
    ];

    #[test]
    fn whatever_is_wrong_is_found() {
        let case = Case::new();
        assert_eq!(case.audit(), Ok(()));
        assert_eq!(case.pool.books(), Books { free: 1, used: 3, cached: 2, total: 6 });
        for (word, corrupt) in CORRUPTIONS {
            let mut case = Case::new();
            corrupt(&mut case);
            let said = case.audit().expect_err(word);
            assert!(said.contains(word), "{word}: {said}");
        }
    }

    #[test]
    fn books_that_do_not_balance_say_so() {
        let mut case = Case::new();
        assert!(case.pool.books().balance());
        case.pool.free.pop();
        assert!(!case.pool.books().balance(), "a block that is lost is not counted as used");
    }
}
