//! The reference backend: scalar, obvious, f32 values with f64 sums. Every other backend is held to it.

mod math;

use std::ops::Range;
use std::time::Instant;

use exotherm_tensor::formats;

use crate::backend::{
    Backend, BackendError, Executor, KvType, Limits, MemoryUse, Place, check_batch, row_of_logits,
};
use crate::batch::{BLOCK, Batch, Span};
use crate::ops::{self, Op};
use crate::profile::OpTime;
use crate::program::{Buf, KvId, MatId, Program, RecId, Rows, VecId};
use crate::rounding::Activations;

pub(crate) use math::{activate, gated, normalized, sigmoid, soft_capped};

pub struct ReferenceBackend;

impl ReferenceBackend {
    /// Threads that share out the larger products.
    pub fn threads() -> usize {
        std::thread::available_parallelism().map_or(1, |n| n.get())
    }
}

/// The same arithmetic on activations that are rounded as another backend rounds them.
pub struct ReferenceWith(pub Activations);

impl Backend for ReferenceBackend {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn memory(&self, program: &Program, limits: &Limits) -> MemoryUse {
        ReferenceWith(Activations::Exact).memory(program, limits)
    }

    fn compile(&self, program: &Program, limits: &Limits) -> Result<Box<dyn Executor>, BackendError> {
        ReferenceWith(Activations::Exact).compile(program, limits)
    }
}

impl Backend for ReferenceWith {
    fn name(&self) -> &'static str {
        match self.0 {
            Activations::Exact => "reference",
            Activations::Rounded => "reference (rounded activations)",
            Activations::RoundedToBf16 => "reference (activations rounded, to BF16 too)",
            Activations::RoundedToF16 => "reference (activations and weights rounded to F16)",
        }
    }

    fn activations(&self) -> Activations {
        self.0
    }

    /// Values of the cache lie as f32 whatever their type.
    fn memory(&self, program: &Program, limits: &Limits) -> MemoryUse {
        let state = program.state();
        let floats = |n: usize, of_each: usize| n.saturating_mul(of_each).saturating_mul(size_of::<f32>());
        let (per_row, per_logit_row) = program.scratch_widths();
        MemoryUse {
            weights: program.weight_bytes(),
            kv: floats(limits.blocks, state.kv_elements_per_token().saturating_mul(BLOCK)),
            recurrent: floats(limits.slots, state.recurrent_elements_per_slot()),
            scratch: floats(limits.rows, per_row).saturating_add(floats(limits.logit_rows, per_logit_row)),
        }
    }

    fn compile(&self, program: &Program, limits: &Limits) -> Result<Box<dyn Executor>, BackendError> {
        let rows_of = |rows| if rows == Rows::Batch { limits.rows } else { limits.logit_rows };
        let slots = program.plan().slots().iter().map(|s| vec![0.0; s.width * rows_of(s.rows)]).collect();
        let kv_len = |layer: &crate::KvLayer| limits.blocks * BLOCK * layer.kv_heads * layer.head_dim;
        let kv: Vec<Vec<f32>> = program.state().kv.iter().map(|l| vec![0.0; kv_len(l)]).collect();
        let recurrent = program.state().recurrent.iter().map(|w| vec![0.0; w * limits.slots]).collect();
        Ok(Box::new(Reference {
            cx: Cx {
                program: program.clone(),
                limits: limits.clone(),
                activations: self.0,
                batch: Batch::default(),
                slots,
                keys: kv.clone(),
                values: kv,
                recurrent,
            },
            times: Vec::new(),
        }))
    }
}

struct Reference {
    cx: Cx,
    /// Of the last run, one for each op; empty while profiling is off.
    times: Vec<OpTime>,
}

impl Executor for Reference {
    fn run(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.run_ops(batch, 0..self.cx.program.ops().len())
    }

    fn run_ops(&mut self, batch: &Batch, ops: Range<usize>) -> Result<(), BackendError> {
        check_batch(&self.cx.program, &self.cx.limits, batch)?;
        self.cx.batch = batch.clone();
        let program = self.cx.program.clone();
        self.times.fill(OpTime::default());
        for op in ops {
            let begin = Instant::now();
            run(&program.ops()[op], &mut self.cx);
            if let Some(time) = self.times.get_mut(op) {
                time.total = begin.elapsed().as_nanos() as u64;
            }
        }
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        let logits = self.cx.program.logits();
        let n = self.cx.batch.logit_rows().len() * self.cx.program.buffer(logits).width;
        &self.cx.slots[self.cx.slot(logits)][..n]
    }

    fn logits_of(&self, row: usize) -> Result<&[f32], BackendError> {
        row_of_logits(&self.cx.program, self.logits(), row)
    }

    fn memory(&self) -> MemoryUse {
        let floats = |of: &[Vec<f32>]| of.iter().map(|v| 4 * v.len()).sum::<usize>();
        MemoryUse {
            weights: self.cx.program.weight_bytes(),
            kv: floats(&self.cx.keys) + floats(&self.cx.values),
            recurrent: floats(&self.cx.recurrent),
            scratch: floats(&self.cx.slots),
        }
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        for (cells, layer) in
            self.cx.keys.iter_mut().chain(&mut self.cx.values).zip(self.cx.program.state().kv.iter().cycle())
        {
            let elements = BLOCK * layer.kv_heads * layer.head_dim;
            copy_part(cells, elements, from, to);
        }
    }

    fn copy_slot(&mut self, from: u32, to: u32) {
        for (state, &width) in self.cx.recurrent.iter_mut().zip(&self.cx.program.state().recurrent) {
            copy_part(state, width, from, to);
        }
    }

    fn set_profiling(&mut self, on: bool) {
        self.times.clear();
        self.times.resize(if on { self.cx.program.ops().len() } else { 0 }, OpTime::default());
    }

    fn op_times(&self) -> &[OpTime] {
        &self.times
    }

    fn read(&self, place: Place) -> Vec<f32> {
        let used = match place {
            Place::Buffer(buf) => self.cx.rows_in_step(buf) * self.cx.program.buffer(buf).width,
            _ => self.cx.place(place).len(),
        };
        self.cx.place(place)[..used].to_vec()
    }

    fn write(&mut self, place: Place, values: &[f32]) {
        let kv = matches!(place, Place::Keys(_) | Place::Values(_));
        let kv_type = if kv { self.cx.limits.kv_type } else { KvType::F32 };
        let values: Vec<f32> = values.iter().map(|&v| rounded(kv_type, v)).collect();
        self.cx.place_mut(place)[..values.len()].copy_from_slice(&values);
    }
}

/// Copies one of the parts of `width` elements over another.
fn copy_part(values: &mut [f32], width: usize, from: u32, to: u32) {
    let from = from as usize * width;
    values.copy_within(from..from + width, to as usize * width);
}

fn run(op: &Op, cx: &mut Cx) {
    match op {
        Op::Embed(op) => ops::embed::reference::run(op, cx),
        Op::RopeTable(op) => ops::rope_table::reference::run(op, cx),
        Op::NormLinear(op) => ops::norm_linear::reference::run(op, cx),
        Op::QkRopeWrite(op) => ops::qk_rope_write::reference::run(op, cx),
        Op::Attention(op) => ops::attention::reference::run(op, cx),
        Op::LinearResidual(op) => ops::linear_residual::reference::run(op, cx),
        Op::MoeRoute(op) => ops::moe_route::reference::run(op, cx),
        Op::MoeGateUp(op) => ops::moe_gate_up::reference::run(op, cx),
        Op::MoeDown(op) => ops::moe_down::reference::run(op, cx),
        Op::ShiftMix(op) => ops::shift_mix::reference::run(op, cx),
        Op::GroupedLinear(op) => ops::grouped_linear::reference::run(op, cx),
        Op::Lora(op) => ops::lora::reference::run(op, cx),
        Op::TimeMix(op) => ops::time_mix::reference::run(op, cx),
        Op::ChannelMix(op) => ops::channel_mix::reference::run(op, cx),
        Op::Head(op) => ops::head::reference::run(op, cx),
    }
}

/// `value` as the cache stores it.
fn rounded(kv_type: KvType, value: f32) -> f32 {
    match kv_type {
        KvType::F32 => value,
        KvType::F16 => {
            let mut bytes = [0u8; 2];
            let mut back = [0.0];
            formats::encode(exotherm_tensor::DType::F16, &[value], &mut bytes);
            formats::decode(exotherm_tensor::DType::F16, &bytes, &mut back);
            back[0]
        }
    }
}

/// What an op's reference sees: the step's batch and all memory. Rows are copied in and out: plain over fast.
pub(crate) struct Cx {
    pub program: Program,
    pub batch: Batch,
    limits: Limits,
    activations: Activations,
    slots: Vec<Vec<f32>>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    recurrent: Vec<Vec<f32>>,
}

impl Cx {
    fn slot(&self, buf: Buf) -> usize {
        self.program.plan().slot_of(buf).expect("an op's buffer has a slot")
    }

    fn rows_in_step(&self, buf: Buf) -> usize {
        match self.program.buffer(buf).rows {
            Rows::Batch => self.batch.rows(),
            Rows::Logits => self.batch.logit_rows().len(),
        }
    }

    fn place(&self, place: Place) -> &[f32] {
        match place {
            Place::Buffer(buf) => &self.slots[self.slot(buf)],
            Place::Keys(KvId(l)) => &self.keys[l as usize],
            Place::Values(KvId(l)) => &self.values[l as usize],
            Place::Recurrent(RecId(i)) => &self.recurrent[i as usize],
        }
    }

    fn place_mut(&mut self, place: Place) -> &mut [f32] {
        match place {
            Place::Buffer(buf) => {
                let slot = self.slot(buf);
                &mut self.slots[slot]
            }
            Place::Keys(KvId(l)) => &mut self.keys[l as usize],
            Place::Values(KvId(l)) => &mut self.values[l as usize],
            Place::Recurrent(RecId(i)) => &mut self.recurrent[i as usize],
        }
    }

    pub fn spans(&self) -> Vec<Span> {
        self.batch.spans().to_vec()
    }

    pub fn row(&self, buf: Buf, row: usize) -> Vec<f32> {
        let width = self.program.buffer(buf).width;
        self.place(Place::Buffer(buf))[row * width..(row + 1) * width].to_vec()
    }

    pub fn set_row(&mut self, buf: Buf, row: usize, values: &[f32]) {
        let width = self.program.buffer(buf).width;
        self.place_mut(Place::Buffer(buf))[row * width..(row + 1) * width].copy_from_slice(values);
    }

    /// All rows of the step in `buf`.
    pub fn rows(&self, buf: Buf) -> Vec<Vec<f32>> {
        (0..self.rows_in_step(buf)).map(|r| self.row(buf, r)).collect()
    }

    pub fn vector(&self, id: VecId) -> Vec<f32> {
        self.program.vector(id).to_vec()
    }

    /// weights · row (+ bias) for each row; the weights' rows `rows` only.
    pub fn linear(
        &self,
        weight: MatId,
        rows: Range<usize>,
        x: &[&[f32]],
        bias: Option<VecId>,
    ) -> Vec<Vec<f32>> {
        let bias = bias.map(|b| &self.program.vector(b)[rows.clone()]);
        math::linear(self.program.matrix(weight), rows, x, bias, self.activations)
    }

    /// What a router makes of each row.
    pub fn scores(&self, router: MatId, x: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let x: Vec<&[f32]> = x.iter().map(Vec::as_slice).collect();
        let matrix = self.program.matrix(router);
        math::linear(matrix, 0..matrix.n_out, &x, None, self.activations.of_routes())
    }

    /// All rows of the matrix.
    pub fn linear_all(&self, weight: MatId, x: &[Vec<f32>], bias: Option<VecId>) -> Vec<Vec<f32>> {
        let x: Vec<&[f32]> = x.iter().map(Vec::as_slice).collect();
        self.linear(weight, 0..self.program.matrix(weight).n_out, &x, bias)
    }

    /// Where head `head` of `position` of a sequence lies in a layer's keys and values.
    fn kv_range(&self, kv: KvId, span: &Span, position: usize, head: usize) -> Range<usize> {
        let layer = self.program.state().kv[kv.0 as usize];
        let block = self.batch.block_table(span)[position / BLOCK] as usize;
        let at = ((block * layer.kv_heads + head) * BLOCK + position % BLOCK) * layer.head_dim;
        at..at + layer.head_dim
    }

    pub fn key(&self, kv: KvId, span: &Span, position: usize, head: usize) -> &[f32] {
        &self.keys[kv.0 as usize][self.kv_range(kv, span, position, head)]
    }

    pub fn value(&self, kv: KvId, span: &Span, position: usize, head: usize) -> &[f32] {
        &self.values[kv.0 as usize][self.kv_range(kv, span, position, head)]
    }

    pub fn set_kv(
        &mut self,
        kv: KvId,
        span: &Span,
        position: usize,
        head: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let (range, kv_type) = (self.kv_range(kv, span, position, head), self.limits.kv_type);
        for (i, at) in range.enumerate() {
            self.keys[kv.0 as usize][at] = rounded(kv_type, key[i]);
            self.values[kv.0 as usize][at] = rounded(kv_type, value[i]);
        }
    }

    /// The recurrent state with which a span begins: zero at the start of a sequence.
    pub fn state(&self, id: RecId, span: &Span) -> Vec<f32> {
        let width = self.program.state().recurrent[id.0 as usize];
        if span.start == 0 {
            return vec![0.0; width];
        }
        let at = span.slot as usize * width;
        self.recurrent[id.0 as usize][at..at + width].to_vec()
    }

    pub fn set_state(&mut self, id: RecId, span: &Span, values: &[f32]) {
        let at = span.slot as usize * values.len();
        self.recurrent[id.0 as usize][at..at + values.len()].copy_from_slice(values);
    }
}
