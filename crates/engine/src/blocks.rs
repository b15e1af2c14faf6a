//! The pool of KV blocks.

/// Where the blocks of the KV cache are: `free + used` is `total` at every moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Books {
    pub free: usize,
    /// Blocks in the tables of running and held sequences.
    pub used: usize,
    pub total: usize,
}

impl Books {
    pub fn balance(&self) -> bool {
        self.free + self.used == self.total
    }
}

pub(crate) struct BlockPool {
    /// Taken from the end.
    free: Vec<u32>,
    is_free: Vec<bool>,
}

impl BlockPool {
    pub fn new(blocks: u32) -> BlockPool {
        BlockPool { free: (0..blocks).rev().collect(), is_free: vec![true; blocks as usize] }
    }

    pub fn total(&self) -> usize {
        self.is_free.len()
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Makes `table` `blocks` long, taking from the pool or giving back to it.
    ///
    /// The pool holds a full context for every place, and no sequence may outgrow its context, so it cannot
    /// run out.
    pub fn resize(&mut self, table: &mut Vec<u32>, blocks: usize) {
        while table.len() < blocks {
            let block = self.free.pop().expect("the pool holds a full context for every sequence");
            self.is_free[block as usize] = false;
            table.push(block);
        }
        while table.len() > blocks {
            let block = table.pop().expect("the table is longer than asked for");
            debug_assert!(!self.is_free[block as usize], "block {block} is given back twice");
            self.is_free[block as usize] = true;
            self.free.push(block);
        }
    }
}
