//! Takes tensors out of a checkpoint into a program: matrices as they lie in the file (quantized if that was
//! asked for), small vectors as f32.

use std::sync::Arc;

use exotherm_kernels::{MatId, Norm, NormKind, ProgramBuilder, VecId};
use exotherm_tensor::{DType, Tensor};
use exotherm_weights::{Checkpoint, Format, storage_type};

use crate::{Model, ModelError, ModelInfo};

/// Told how many bytes of weights have been taken and how many there are.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

#[derive(Clone, Default)]
pub struct LoadOptions {
    /// Store float weight matrices in this type.
    pub quantize: Option<DType>,
    pub progress: Option<Progress>,
}

/// A tensor's name in the two kinds of checkpoints, without `.weight` or `.bias`.
#[derive(Clone, Copy)]
pub(crate) struct Name<'a> {
    pub gguf: &'a str,
    pub hf: &'a str,
}

/// Shorthand: the name in GGUF files, the name in safetensors.
pub(crate) const fn name<'a>(gguf: &'a str, hf: &'a str) -> Name<'a> {
    Name { gguf, hf }
}

pub(crate) struct Loader<'a> {
    pub checkpoint: &'a mut Checkpoint,
    pub program: ProgramBuilder,
    options: &'a LoadOptions,
    /// What stands before the names in safetensors, such as `model.`.
    hf_prefix: String,
    layer: Option<usize>,
    taken_bytes: u64,
    parameters: u64,
    types: Vec<(DType, u64)>,
}

impl<'a> Loader<'a> {
    pub fn new(checkpoint: &'a mut Checkpoint, options: &'a LoadOptions) -> Loader<'a> {
        Loader {
            checkpoint,
            program: ProgramBuilder::new(),
            options,
            hf_prefix: String::new(),
            layer: None,
            taken_bytes: 0,
            parameters: 0,
            types: Vec::new(),
        }
    }

    pub fn is_gguf(&self) -> bool {
        self.checkpoint.format() == Format::Gguf
    }

    /// Looks under which of these prefixes a safetensors checkpoint keeps its tensors, by one that it must have.
    pub fn find_prefix(&mut self, prefixes: &[&str], tensor: &str) {
        let holds = |prefix: &&&str| self.checkpoint.contains(&format!("{prefix}{tensor}"));
        let found = prefixes.iter().find(holds).or(prefixes.first());
        self.hf_prefix = found.map(|p| p.to_string()).unwrap_or_default();
    }

    /// From now on names are those of layer `i`; `None`: of no layer.
    pub fn enter(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    pub fn full_name(&self, name: Name) -> String {
        match (self.is_gguf(), self.layer) {
            (true, Some(i)) => format!("blk.{i}.{}", name.gguf),
            (true, None) => name.gguf.to_string(),
            (false, Some(i)) => format!("{}{}", self.hf_prefix, name.hf.replace("{i}", &i.to_string())),
            (false, None) => format!("{}{}", self.hf_prefix, name.hf),
        }
    }

    pub fn has(&self, name: Name, suffix: &str) -> bool {
        self.checkpoint.contains(&format!("{}{suffix}", self.full_name(name)))
    }

    /// Rows of a tensor of the file, its outermost dimension; 0 if it is not there or has none, which `take` refuses.
    pub fn rows_in_file(&self, full_name: &str) -> usize {
        self.checkpoint.info(full_name).and_then(|(_, shape)| shape.first().copied()).unwrap_or(0)
    }

    /// The tensor under its full name, counted.
    pub fn take(&mut self, full_name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let tensor = self.checkpoint.take(full_name, shape)?;
        self.count(&tensor);
        Ok(tensor)
    }

    fn count(&mut self, tensor: &Tensor) {
        let n = tensor.len() as u64;
        self.parameters += n;
        match self.types.iter_mut().find(|(t, _)| *t == tensor.dtype()) {
            Some((_, count)) => *count += n,
            None => self.types.push((tensor.dtype(), n)),
        }
        self.taken_bytes += tensor.bytes().len() as u64;
        if let Some(progress) = &self.options.progress {
            progress(self.taken_bytes, self.checkpoint.tensor_bytes());
        }
    }

    /// `NAME.weight` as `[n_out, n_in]`.
    pub fn weight(&mut self, name: Name, n_out: usize, n_in: usize) -> Result<Tensor, ModelError> {
        self.take(&format!("{}.weight", self.full_name(name)), &[n_out, n_in])
    }

    /// A matrix of several weights that read the same input, one below the other.
    pub fn packed(&mut self, parts: &[(Name, usize)], n_in: usize) -> Result<MatId, ModelError> {
        let label = self.full_name(parts[0].0);
        let tensors = parts.iter().map(|&(name, n_out)| self.weight(name, n_out, n_in));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        self.matrix_of(label, tensors)
    }

    pub fn matrix(&mut self, name: Name, n_out: usize, n_in: usize) -> Result<MatId, ModelError> {
        self.packed(&[(name, n_out)], n_in)
    }

    /// A matrix that keeps its type whatever was asked for (routers, positions, low-rank pairs).
    pub fn plain_matrix(&mut self, name: Name, n_out: usize, n_in: usize) -> Result<MatId, ModelError> {
        let tensor = self.weight(name, n_out, n_in)?;
        Ok(self.program.matrix(self.full_name(name), vec![tensor]))
    }

    /// Adds taken tensors as one matrix, quantized first if that was asked for.
    pub fn matrix_of(&mut self, label: String, tensors: Vec<Tensor>) -> Result<MatId, ModelError> {
        let Some(wanted) = self.options.quantize else { return Ok(self.program.matrix(label, tensors)) };
        let mut segments = Vec::new();
        for tensor in &tensors {
            let pieces = quantized(tensor, wanted);
            segments.extend(pieces.ok_or_else(|| ModelError::NotFinite { name: label.clone() })?);
        }
        Ok(self.program.matrix(label, segments))
    }

    /// The elements of a float tensor as f32.
    pub fn floats(&mut self, full_name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let tensor = self.take(full_name, shape)?;
        if tensor.dtype().is_quantized() {
            return Err(ModelError::NotFloat { name: full_name.into(), dtype: tensor.dtype() });
        }
        let values = tensor.to_f32();
        match values.iter().all(|v| v.is_finite()) {
            true => Ok(values),
            false => Err(ModelError::NotFinite { name: full_name.into() }),
        }
    }

    pub fn vector(&mut self, name: Name, suffix: &str, n: usize) -> Result<VecId, ModelError> {
        let full_name = format!("{}{suffix}", self.full_name(name));
        let values = self.floats(&full_name, &[n])?;
        Ok(self.program.vector(values))
    }

    /// The biases of several projections, one after another, if `wanted`.
    pub fn biases(&mut self, parts: &[(Name, usize)], wanted: bool) -> Result<Option<VecId>, ModelError> {
        if !wanted {
            return Ok(None);
        }
        let mut all = Vec::new();
        for &(name, n) in parts {
            all.extend(self.floats(&format!("{}.bias", self.full_name(name)), &[n])?);
        }
        Ok(Some(self.program.vector(all)))
    }

    /// `NAME.weight` as an RMS norm; `offset` is added to the weights (1 where they are stored as differences from 1).
    pub fn rms_norm(&mut self, name: Name, n: usize, eps: f32, offset: f32) -> Result<Norm, ModelError> {
        let mut weight = self.floats(&format!("{}.weight", self.full_name(name)), &[n])?;
        weight.iter_mut().for_each(|w| *w += offset);
        let weight = self.program.vector(weight);
        Ok(Norm { kind: NormKind::Rms, weight, bias: None, eps })
    }

    /// `NAME.weight` and `NAME.bias` as a layer norm.
    pub fn layer_norm(&mut self, name: Name, n: usize, eps: f32) -> Result<Norm, ModelError> {
        let weight = self.vector(name, ".weight", n)?;
        let bias = self.vector(name, ".bias", n)?;
        Ok(Norm { kind: NormKind::Layer, weight, bias: Some(bias), eps })
    }

    /// Ends the recording: every tensor must have been used or be one that may stay.
    pub fn finish(
        self,
        logits: exotherm_kernels::Buf,
        may_stay: &dyn Fn(&str) -> bool,
        mut info: ModelInfo,
    ) -> Result<Model, ModelError> {
        self.checkpoint.finish(may_stay)?;
        info.name = self.checkpoint.metadata().str("general.name").map(str::to_string);
        info.parameters = self.parameters;
        info.types = self.types;
        let vocab = info.vocab;
        Ok(Model { program: self.program.finish(logits, vocab), info })
    }
}

/// The matrix in pieces of rows, each stored in the wanted type; a type that the row length does not allow
/// falls back as `storage_type` says. Weights that are quantized already stay as they are. `None`: a weight is not
/// finite, which a quantized type might hide.
fn quantized(tensor: &Tensor, wanted: DType) -> Option<Vec<Tensor>> {
    if tensor.dtype().is_quantized() {
        return Some(vec![tensor.clone()]);
    }
    let to = storage_type(tensor.dtype(), tensor.n_in(), wanted);
    if to == tensor.dtype() {
        return Some(vec![tensor.clone()]);
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let share = tensor.n_rows().div_ceil(threads);
    let encode = |start: usize| {
        let rows = tensor.rows(start..(start + share).min(tensor.n_rows()));
        let mut row = vec![0.0; rows.n_in()];
        for i in 0..rows.n_rows() {
            rows.decode_row(i, &mut row);
            if !row.iter().all(|v| v.is_finite()) {
                return None;
            }
        }
        rows.encoded(to)
    };
    let pieces = std::thread::scope(|scope| {
        let encode = &encode;
        let starts = (0..tensor.n_rows()).step_by(share);
        let workers: Vec<_> = starts.map(|start| scope.spawn(move || encode(start))).collect();
        workers.into_iter().map(|w| w.join().expect("encoding does not panic")).collect()
    });
    tensor.give_back();
    pieces
}
