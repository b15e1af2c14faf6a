//! Reads `tests/data/op_vectors.txt`, which xtask/golden/op_vectors.py makes, and runs programs on its numbers.

use std::collections::HashMap;

use exotherm_kernels::backend::{Backend, Executor};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{Batch, KvType, Limits, MatId, Program, ProgramBuilder, VecId};
use exotherm_tensor::Tensor;

pub struct Vectors(HashMap<&'static str, Vec<f32>>);

impl Vectors {
    pub fn load() -> Vectors {
        let line = |line: &'static str| {
            let (name, numbers) = line.split_once(' ').expect("a name and numbers");
            (name, numbers.split(' ').map(|n| n.parse().expect("a number")).collect())
        };
        Vectors(include_str!("../data/op_vectors.txt").lines().map(line).collect())
    }

    pub fn get(&self, name: &str) -> &[f32] {
        self.0.get(name).unwrap_or_else(|| panic!("there is no {name}"))
    }

    pub fn vector(&self, b: &mut ProgramBuilder, name: &str) -> VecId {
        b.vector(self.get(name).to_vec())
    }

    /// The numbers as a matrix of rows `n_in` wide.
    pub fn matrix(&self, b: &mut ProgramBuilder, name: &str, n_in: usize) -> MatId {
        let values = self.get(name);
        let tensor = Tensor::from_f32(&[values.len() / n_in, n_in], values).expect("the shape fits");
        b.matrix(name, vec![tensor])
    }
}

/// The program on `reference` with room for one sequence of 32 positions.
pub fn compiled(program: &Program) -> Box<dyn Executor> {
    let limits = Limits { rows: 32, logit_rows: 1, blocks: 2, slots: 1, kv_type: KvType::F32 };
    ReferenceBackend.compile(program, &limits).expect("reference takes any program")
}

/// A batch of one sequence's positions `start..start + rows`.
pub fn positions(start: usize, rows: usize) -> Batch {
    let mut batch = Batch::default();
    batch.push_span(&vec![0; rows], start as u32, &[1, 0], 0);
    batch
}

pub fn finish(mut b: ProgramBuilder) -> Program {
    let logits = b.logits_buffer(1);
    b.finish(logits, 1)
}

/// The file holds seven digits and the reference rounds to f32 between its steps.
pub fn assert_close(what: &str, want: &[f32], have: &[f32]) {
    assert_eq!(want.len(), have.len(), "{what}");
    for (i, (want, have)) in want.iter().zip(have).enumerate() {
        let off = (want - have).abs();
        assert!(off <= 1e-6 + 1e-6 * want.abs(), "{what} at {i}: {have}, not {want} (off by {off:e})");
    }
}
