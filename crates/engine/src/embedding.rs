//! Embeddings: the mean of a text's last hidden states after the model's last norm, scaled to length 1.

use std::sync::{Mutex, OnceLock, PoisonError};

use exotherm_kernels::ops::Head;
use exotherm_kernels::{Buf, NormKind, Op, Program};

/// Where a request's embedding is made, from its prompt alone; there once the request is finished.
#[derive(Default, Debug)]
pub struct Embedding {
    sum: Mutex<Vec<f64>>,
    made: OnceLock<Box<[f32]>>,
}

impl Embedding {
    pub fn values(&self) -> Option<&[f32]> {
        self.made.get().map(|values| &values[..])
    }
}

/// What comes after the last layer, as far as it is needed here. It is computed where the requests are kept, row by row
/// and in f64, so that an embedding does not depend on what else was in its steps.
pub(crate) struct Embedder {
    pub hidden: Buf,
    width: usize,
    kind: NormKind,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    eps: f64,
}

impl Embedder {
    /// `None` for a program without a head.
    pub fn new(program: &Program) -> Option<Embedder> {
        let head: &Head = program.ops().iter().rev().find_map(|op| match op {
            Op::Head(head) => Some(head),
            _ => None,
        })?;
        Some(Embedder {
            hidden: head.x,
            width: program.buffer(head.x).width,
            kind: head.norm.kind,
            weight: program.vector(head.norm.weight).to_vec(),
            bias: head.norm.bias.map(|bias| program.vector(bias).to_vec()),
            eps: f64::from(head.norm.eps),
        })
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// Takes in the hidden states of positions from `start` on; a text of `prompt_len` tokens is made with its last.
    pub fn take(&self, embedding: &Embedding, start: usize, rows: &[f32], prompt_len: usize) {
        let mut sum = embedding.sum.lock().unwrap_or_else(PoisonError::into_inner);
        // A request that gave its place to others begins anew.
        if start == 0 {
            sum.clear();
            sum.resize(self.width, 0.0);
        }
        let rows = rows.chunks_exact(self.width).take(prompt_len.saturating_sub(start));
        let mut end = start;
        for row in rows {
            self.add_normed(row, &mut sum);
            end += 1;
        }
        if end == prompt_len {
            let length = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
            let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
            // A text whose request was put off after its last token has it already.
            let _ = embedding.made.set(sum.iter().map(|v| (v * scale) as f32).collect());
        }
    }

    fn add_normed(&self, row: &[f32], sum: &mut [f64]) {
        let n = self.width as f64;
        let mean = match self.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => row.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
        };
        let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let scale = 1.0 / (variance + self.eps).sqrt();
        for (i, (sum, &value)) in sum.iter_mut().zip(row).enumerate() {
            let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]));
            *sum += (f64::from(value) - mean) * scale * f64::from(self.weight[i]) + bias;
        }
    }
}
