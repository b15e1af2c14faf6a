//! Numbers, tensors and layouts of sequences for the cases: drawn from a seed, the same on every machine.

use exotherm_tensor::{DType, Tensor};

use crate::backend::{KvType, Limits};
use crate::batch::{BLOCK, Batch};

/// A splitmix64 stream.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// `n` values spread evenly over `centre - spread .. centre + spread`.
    pub fn around(&mut self, n: usize, centre: f32, spread: f32) -> Vec<f32> {
        let unit = |bits: u64| (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        (0..n).map(|_| centre + spread * unit(self.next())).collect()
    }

    /// `n` values of both signs up to `magnitude`.
    pub fn signed(&mut self, n: usize, magnitude: f32) -> Vec<f32> {
        self.around(n, 0.0, magnitude)
    }

    /// A matrix of weights up to `magnitude`, stored as `dtype`.
    pub fn tensor(&mut self, dtype: DType, n_out: usize, n_in: usize, magnitude: f32) -> Tensor {
        let values = self.signed(n_out * n_in, magnitude);
        let tensor = Tensor::from_f32(&[n_out, n_in], &values).expect("the shape has no zero");
        tensor.encoded(dtype).expect("the width is a whole number of blocks")
    }

    /// 0..n in a random order.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// A run of a sequence's positions: the sequence, its first position, and how many.
pub type Piece = (usize, usize, usize);

/// Where several sequences keep their state: blocks scattered over the pool and interleaved, slots in any order,
/// some blocks and slots that belong to nobody.
pub struct Sequences {
    tables: Vec<Vec<u32>>,
    slots: Vec<u32>,
    pub limits: Limits,
}

impl Sequences {
    /// Room for sequences of these lengths and for steps of `rows` rows; three blocks, two slots and three rows
    /// are to spare.
    pub fn scattered(lengths: &[usize], rows: usize, kv_type: KvType, numbers: &mut Numbers) -> Sequences {
        let blocks = lengths.iter().map(|n| n.div_ceil(BLOCK)).sum::<usize>() + 3;
        let order = numbers.permutation(blocks);
        let mut free = order.iter().copied();
        let mut tables = vec![Vec::new(); lengths.len()];
        for round in 0..lengths.iter().map(|n| n.div_ceil(BLOCK)).max().unwrap_or(0) {
            let growing = tables.iter_mut().zip(lengths).filter(|(_, n)| round * BLOCK < **n);
            growing.for_each(|(table, _)| table.extend(free.next()));
        }
        let mut slots = numbers.permutation(lengths.len() + 2);
        slots.truncate(lengths.len());
        let limits =
            Limits { rows: rows + 3, logit_rows: rows + 3, blocks, slots: lengths.len() + 2, kv_type };
        Sequences { tables, slots, limits }
    }

    /// A step over these pieces with tokens that `token` gives for (sequence, position).
    pub fn batch(&self, pieces: &[Piece], mut token: impl FnMut(usize, usize) -> u32) -> Batch {
        let mut batch = Batch::default();
        for &(sequence, start, rows) in pieces {
            let tokens: Vec<u32> = (start..start + rows).map(|p| token(sequence, p)).collect();
            batch.push_span(&tokens, start as u32, &self.tables[sequence], self.slots[sequence]);
        }
        batch
    }
}
