//! The fused operations, one folder each: arguments, reference, kernels and conformance cases side by side.

pub mod attention;
pub mod channel_mix;
pub mod embed;
pub mod grouped_linear;
pub mod head;
pub mod linear_residual;
pub mod lora;
pub mod moe_down;
pub mod moe_gate_up;
pub mod moe_route;
pub mod norm_linear;
pub mod qk_rope_write;
pub mod rope_table;
pub mod shift_mix;
pub mod time_mix;

use crate::program::{Buf, MatId, Program, VecId};

pub use attention::Attention;
pub use channel_mix::ChannelMix;
pub use embed::Embed;
pub use grouped_linear::GroupedLinear;
pub use head::Head;
pub use linear_residual::LinearResidual;
pub use lora::{Lora, LoraPair};
pub use moe_down::MoeDown;
pub use moe_gate_up::MoeGateUp;
pub use moe_route::MoeRoute;
pub use norm_linear::NormLinear;
pub use qk_rope_write::{QkRopeWrite, Rope, RopeStyle};
pub use rope_table::RopeTable;
pub use shift_mix::ShiftMix;
pub use time_mix::TimeMix;

/// Declares the enum and what is the same for every op, so that a new op is one line here and its folder.
macro_rules! ops {
    ($($name:ident => $label:literal),+ $(,)?) => {
        /// One fused operation of a program.
        #[derive(Clone, Debug)]
        pub enum Op { $($name($name)),+ }

        impl Op {
            pub fn name(&self) -> &'static str {
                match self { $(Op::$name(_) => $label),+ }
            }

            /// Calls `f` with every buffer that the op reads or writes.
            pub fn for_each_buffer(&self, f: &mut dyn FnMut(Buf)) {
                match self { $(Op::$name(op) => op.for_each_buffer(f)),+ }
            }

            /// The buffer that holds what the op made, for comparing backends op by op.
            pub fn result(&self) -> Buf {
                match self { $(Op::$name(op) => op.result()),+ }
            }

            /// Checks that widths and sizes fit together.
            pub fn check(&self, program: &Program) -> Result<(), String> {
                match self { $(Op::$name(op) => op.check(program)),+ }
            }

            /// Weight matrices that one row reads: (matrix, rows of it read).
            pub fn for_each_matrix(&self, program: &Program, f: &mut dyn FnMut(MatId, usize)) {
                match self { $(Op::$name(op) => op.for_each_matrix(program, f)),+ }
            }
        }

        $(impl From<$name> for Op { fn from(op: $name) -> Op { Op::$name(op) } })+
    };
}

ops! {
    Embed => "embed",
    RopeTable => "rope_table",
    NormLinear => "norm_linear",
    QkRopeWrite => "qk_rope_write",
    Attention => "attention",
    LinearResidual => "linear_residual",
    MoeRoute => "moe_route",
    MoeGateUp => "moe_gate_up",
    MoeDown => "moe_down",
    ShiftMix => "shift_mix",
    GroupedLinear => "grouped_linear",
    Lora => "lora",
    TimeMix => "time_mix",
    ChannelMix => "channel_mix",
    Head => "head",
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NormKind {
    /// x / sqrt(mean(x²) + eps) · weight
    Rms,
    /// (x − mean) / sqrt(var + eps) · weight + bias
    Layer,
}

/// A normalisation of a row (or of each head of a row).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Norm {
    pub kind: NormKind,
    pub weight: VecId,
    pub bias: Option<VecId>,
    pub eps: f32,
}

impl Norm {
    pub(crate) fn check(&self, program: &Program, width: usize) -> Result<(), String> {
        check_vector(program, self.weight, width, "norm weight")?;
        match self.bias {
            Some(bias) => check_vector(program, bias, width, "norm bias"),
            None => Ok(()),
        }
    }
}

/// What is done to the outputs of a projection. The gated kinds read two outputs, `n` apart, and make one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    None,
    GeluTanh,
    GeluErf,
    SquaredRelu,
    Tanh,
    Sigmoid,
    /// silu(gate) · up
    SiluGlu,
    /// gelu_tanh(gate) · up
    GeluTanhGlu,
}

impl Activation {
    pub fn is_gated(self) -> bool {
        matches!(self, Activation::SiluGlu | Activation::GeluTanhGlu)
    }

    /// Outputs left of `n_out` projections.
    pub fn width(self, n_out: usize) -> usize {
        if self.is_gated() { n_out / 2 } else { n_out }
    }
}

pub(crate) fn check_width(program: &Program, buf: Buf, width: usize) -> Result<(), String> {
    let spec = program.buffer(buf);
    match spec.width == width {
        true => Ok(()),
        false => Err(format!("buffer {} is {} wide, {width} is needed", spec.name, spec.width)),
    }
}

pub(crate) fn check_vector(program: &Program, id: VecId, len: usize, what: &str) -> Result<(), String> {
    match program.vector(id).len() {
        n if n == len => Ok(()),
        n => Err(format!("{what} has {n} elements, {len} are needed")),
    }
}

pub(crate) fn check_matrix(program: &Program, id: MatId, n_out: usize, n_in: usize) -> Result<(), String> {
    let m = program.matrix(id);
    match (m.n_out, m.n_in) == (n_out, n_in) {
        true => Ok(()),
        false => Err(format!("matrix {} is {}×{}, {n_out}×{n_in} is needed", m.name, m.n_out, m.n_in)),
    }
}
