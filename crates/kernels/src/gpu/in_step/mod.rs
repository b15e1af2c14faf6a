//! Products of few rows on devices whose lanes run in step and exchange values: some lanes share an output, each of them takes
//! steps of a row of weights with loads of 16 bytes, and their sums are added up in one order.
//!
//! One or two rows are normed, and rounded where weights are quantized, by every workgroup for itself, as a dispatch of its own
//! would take longer; of more rows that is done once. What a row gets is the same bit for bit.

mod text;
mod tuning;

use super::kernel::Kernel;
use super::linear::{self, Input, Part};
use super::record::{Count, Recorder, View};
use super::rows::RowLayout;
use crate::backend::BackendError;
use crate::layout::UNIT;
use crate::ops::{Norm, NormKind};
use crate::program::{Rows, VecId};
use crate::rounding::NOTHING;

pub use tuning::Tuning;

use tuning::{Shape, Work};

/// Rows that every workgroup makes ready for itself, at most.
const HELD_ROWS: usize = 2;

/// Fewest lanes in step that these kernels ask for: so many round a unit.
const LEAST_IN_STEP: usize = 8;

/// More than so many would have too little to do each.
const MOST_IN_STEP: usize = 32;

/// How many lanes are sure to run in step, if it is enough of them.
pub(crate) fn lanes_in_step(subgroup: Option<(u32, u32)>) -> Option<usize> {
    let least = subgroup?.0 as usize;
    (least >= LEAST_IN_STEP).then_some(least.min(MOST_IN_STEP))
}

/// What activations are when they meet weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// Codes of eight bits, a unit a step.
    Codes,
    /// Floats, so many quads a step.
    Quads(usize),
}

impl Form {
    pub fn of(layout: &RowLayout, rounded: bool) -> Form {
        match (layout.is_quantized(), rounded) {
            (true, true) => Form::Codes,
            (true, false) => Form::Quads(UNIT / 4),
            (false, _) => Form::Quads(2),
        }
    }

    /// Quads that a step of a row consists of.
    fn quads(self) -> usize {
        match self {
            Form::Codes => UNIT / 4,
            Form::Quads(n) => n,
        }
    }

    /// Steps of a row of so many units.
    pub fn steps(self, units: usize) -> usize {
        units * (UNIT / 4) / self.quads()
    }

    /// Bytes of a step.
    fn bytes(self) -> usize {
        match self {
            Form::Codes => UNIT + 8,
            Form::Quads(n) => 16 * n,
        }
    }

    /// Words of a row of so many steps that is kept for several dispatches.
    fn kept_words(self, steps: usize) -> usize {
        match self {
            Form::Codes => 4 * (2 * steps + steps.div_ceil(2)),
            Form::Quads(n) => 4 * n * steps,
        }
    }
}

/// What a kernel computes, whatever it is of.
pub(crate) struct Main {
    pub form: Form,
    pub steps: usize,
    pub n_out: usize,
    /// One, or two for gates and ups.
    pub halves: usize,
    /// Rows that share the weights: as many as there are in all where they are held.
    pub tile: usize,
    /// How often there is all that at least.
    pub times: usize,
    /// Whether workgroups make rows ready for themselves.
    pub is_held: bool,
}

/// Writes `main` of a product, and what lies between it and what its op says:
///
/// | function | what the op says with it |
/// |---|---|
/// | `first_row_of(wg)`, `all_rows()` | which rows a workgroup has, and how many there are |
/// | `begin(lane, row)` | what is done before all else |
/// | `first_raw(out, g)`, `first_unit(raw)`, `first_added(u, a, sum)`, or `second_…` | the weights of step `g`, and what they add to a sum |
/// | `is_made(out)`, `finish(row, out, first, second)` | whether there is such an output, and where it goes |
/// | `row_of(row)`, `filled_quad(row, s, i)`, `factor(row, g)` | where rows are held: what is multiplied, and with what besides |
///
/// Returns the number of workgroups that share the outputs.
pub(crate) fn write_main(recorder: &Recorder, kernel: &mut Kernel, main: &Main) -> usize {
    let (tuning, in_step) = (&recorder.traits.tuning, recorder.traits.in_step().unwrap_or(LEAST_IN_STEP));
    let Main { form, steps, n_out, halves, tile, times, is_held } = *main;
    let work = Work { n_out, halves, tile, times, steps, held: is_held.then_some(form.bytes()) };
    let shape = Shape::of(tuning, in_step, &work);
    kernel.size("N_OUT", n_out);
    kernel.size("TILE", tile);
    kernel.size("LANES", shape.lanes);
    kernel.size("OUTS", shape.outs);
    kernel.size("ROUNDS", shape.rounds);
    kernel.size("CHUNK", shape.chunk);
    write_form(kernel, form, steps);
    kernel.part(match (form, is_held) {
        (Form::Codes, true) => include_str!("../wgsl/held_codes.wgsl"),
        (Form::Codes, false) => include_str!("../wgsl/kept_codes.wgsl"),
        (Form::Quads(_), true) => include_str!("../wgsl/held_quads.wgsl"),
        (Form::Quads(_), false) => include_str!("../wgsl/kept_quads.wgsl"),
    });
    kernel.part(&text::main(tuning, &work, &shape));
    shape.groups
}

/// What activations are, and what makes them so.
fn write_form(kernel: &mut Kernel, form: Form, steps: usize) {
    kernel.size("STEPS", steps);
    kernel.size("STEP_QUADS", form.quads());
    match form {
        Form::Codes => {
            kernel.float("NOTHING", NOTHING);
            kernel.part(include_str!("../wgsl/rounded.wgsl"));
        }
        Form::Quads(_) => kernel.part("struct Activations { v: array<vec4<f32>, STEP_QUADS> }"),
    }
}

/// A product of all rows with each of the parts of a matrix.
pub(crate) fn record(
    recorder: &mut Recorder,
    label: &'static str,
    input: &Input,
    n_in: usize,
    parts: &[Part],
) -> Result<(), BackendError> {
    for rows in 1..=HELD_ROWS {
        recorder.for_rows(rows..=rows, |recorder| {
            parts.iter().for_each(|part| product(recorder, label, input, n_in, part, Source::Held(rows)));
        });
    }
    let rounded = recorder.traits.rounded;
    let mut kept: Vec<(Form, Source)> = Vec::new();
    for form in parts.iter().map(|part| Form::of(&part.piece.layout, rounded)) {
        if kept.iter().all(|(other, _)| *other != form) {
            kept.push((form, keep(recorder, input, n_in, form)?));
        }
    }
    for (rows, tile) in [(HELD_ROWS + 1..=4, 4), (5..=usize::MAX, 8)] {
        recorder.for_rows(rows, |recorder| {
            for part in parts {
                let form = Form::of(&part.piece.layout, rounded);
                let source = kept.iter().find(|(other, _)| *other == form).map(|(_, source)| *source);
                let source = source.expect("rows of every form are kept");
                product(recorder, label, input, n_in, part, source.with_tile(tile));
            }
        });
    }
    Ok(())
}

/// Where a product's rows come from.
#[derive(Clone, Copy)]
enum Source {
    /// Every workgroup makes so many ready for itself.
    Held(usize),
    /// They lie in `view`, each in `row` quads from its quad `at` on; `tile` are taken at a time.
    Kept { view: View, row: usize, at: usize, tile: usize },
}

impl Source {
    fn with_tile(self, tile: usize) -> Source {
        match self {
            Source::Held(_) => self,
            Source::Kept { view, row, at, .. } => Source::Kept { view, row, at, tile },
        }
    }
}

/// Makes rows ready once for all that multiply them, if there is anything to be done.
fn keep(recorder: &mut Recorder, input: &Input, n_in: usize, form: Form) -> Result<Source, BackendError> {
    let steps = form.steps(n_in.div_ceil(UNIT));
    let is_ready = input.norm.is_none() && input.of == Rows::Batch && is_whole(input, n_in);
    if let Form::Quads(quads) = form
        && is_ready
        && n_in.is_multiple_of(4 * quads)
    {
        return Ok(Source::Kept { view: input.rows, row: input.width / 4, at: input.at / 4, tile: 0 });
    }
    let words = form.kept_words(steps);
    // Some matrices want their rows in both forms.
    let name = if form == Form::Codes { "rounded rows" } else { "normed rows" };
    let view = recorder.common_scratch(name, &[words, recorder.most_rows(input.of)])?;
    recorder.for_rows(HELD_ROWS + 1..=usize::MAX, |recorder| {
        let lanes = recorder.traits.tuning.lanes;
        let mut kernel = Kernel::new("rows", lanes);
        let quads = form.quads() * steps;
        // A norm needs the whole row.
        let rounds = if input.norm.is_some() { quads.div_ceil(lanes) } else { 1 };
        kernel.size("ROUNDS", rounds);
        write_input(recorder, &mut kernel, input, n_in);
        write_form(&mut kernel, form, steps);
        let (of, text) = match form {
            Form::Codes => ("u32", include_str!("../wgsl/keep_codes.wgsl")),
            Form::Quads(_) => ("vec4<f32>", include_str!("../wgsl/keep_quads.wgsl")),
        };
        kernel.write("kept", of, view);
        kernel.part(text);
        kernel.part(include_str!("../wgsl/keep.wgsl"));
        let groups = quads.div_ceil(lanes * rounds);
        recorder.dispatch(&kernel, [rows_of(input.of, 1), Count::Fixed(groups), Count::Fixed(1)]);
    });
    Ok(Source::Kept { view, row: words / 4, at: 0, tile: 0 })
}

fn rows_of(of: Rows, tile: usize) -> Count {
    if of == Rows::Batch { Count::Rows(tile) } else { Count::LogitRows(tile) }
}

fn product(
    recorder: &mut Recorder,
    label: &'static str,
    input: &Input,
    n_in: usize,
    part: &Part,
    source: Source,
) {
    let Part { piece, outs, halves, output } = part;
    let form = Form::of(&piece.layout, recorder.traits.rounded);
    let mut kernel = Kernel::new(label, recorder.traits.tuning.lanes);
    kernel.read("weights", "vec4<u32>", piece.view);
    kernel.size("FIRST_OUT", piece.rows.start);
    kernel.size("STRIDE", piece.layout.stride / 4);
    let tile = match source {
        Source::Held(tile) => {
            write_input(recorder, &mut kernel, input, n_in);
            kernel.part(include_str!("../wgsl/held_rows.wgsl"));
            tile
        }
        Source::Kept { view, row, at, tile } => {
            kernel.read("kept", if form == Form::Codes { "vec4<u32>" } else { "vec4<f32>" }, view);
            if form != Form::Codes {
                kernel.size("KEPT", row);
                kernel.size("KEPT_AT", at);
            }
            tile
        }
    };
    linear::write_output(recorder, &mut kernel, output);
    let rows = if input.of == Rows::Batch { "batch_rows()" } else { "logit_rows()" };
    kernel.part(&format!("fn all_rows() -> u32 {{ return {rows}; }}"));
    kernel.part(&piece.layout.step_decoder(form, "weights", ""));
    kernel.part(include_str!("../wgsl/product.wgsl"));
    let main = Main {
        form,
        steps: form.steps(piece.layout.units),
        n_out: *outs,
        halves: *halves,
        tile,
        times: 1,
        is_held: matches!(source, Source::Held(_)),
    };
    let groups = write_main(recorder, &mut kernel, &main);
    // Rows first: workgroups that share weights run at the same time.
    recorder.dispatch(&kernel, [rows_of(input.of, tile), Count::Fixed(groups), Count::Fixed(1)]);
}

/// Whether a row's quads are whole vectors.
fn is_whole(input: &Input, n_in: usize) -> bool {
    [input.width, input.at, n_in].iter().all(|n| n.is_multiple_of(4))
}

/// `input_row`, `input_quad` and `statistics(lane, row)`, which takes the whole workgroup.
pub(crate) fn write_input(recorder: &mut Recorder, kernel: &mut Kernel, input: &Input, n_in: usize) {
    kernel.size("IN_STEP", recorder.traits.in_step().unwrap_or(LEAST_IN_STEP));
    kernel.size("X_WIDTH", input.width);
    kernel.size("X_AT", input.at);
    kernel.size("X_COLUMNS", n_in);
    kernel.part(match input.of {
        Rows::Batch => "fn input_row(i: u32) -> u32 { return i; }",
        Rows::Logits => "fn input_row(i: u32) -> u32 { return logit_row(i); }",
    });
    let is_whole = is_whole(input, n_in);
    kernel.read("x", if is_whole { "vec4<f32>" } else { "f32" }, input.rows);
    kernel.part(&format!(
        "fn raw_quad(row: u32, i: u32) -> vec4<f32> {{\n    let at = row * X_WIDTH + X_AT + 4u * i;\n    \
         return {};\n}}",
        if is_whole {
            "x[at / 4u]".into()
        } else {
            quad_of("x", "at", "row * X_WIDTH + X_AT + X_COLUMNS - 1u")
        }
    ));
    kernel.part(include_str!("../wgsl/in_step.wgsl"));
    kernel.part(include_str!("../wgsl/quads.wgsl"));
    write_norm(recorder, kernel, input.norm.as_ref(), n_in);
}

/// Four floats from `at` on, none of them behind `last`.
fn quad_of(array: &str, at: &str, last: &str) -> String {
    let one = |c: usize| format!("{array}[min({at} + {c}u, {last})]");
    format!("vec4<f32>({}, {}, {}, {})", one(0), one(1), one(2), one(3))
}

fn write_norm(recorder: &mut Recorder, kernel: &mut Kernel, norm: Option<&Norm>, n_in: usize) {
    let Some(norm) = norm else {
        kernel.part(
            "fn statistics(lane: u32, row: u32) -> vec2<f32> { return vec2<f32>(0.0, 1.0); }\n\
             fn normed_quad(v: vec4<f32>, s: vec2<f32>, i: u32) -> vec4<f32> { return v; }",
        );
        return;
    };
    // Weights, then biases.
    let vectors: Vec<VecId> = [norm.weight].into_iter().chain(norm.bias).collect();
    let vectors = recorder.joined(&vectors);
    let is_whole = n_in.is_multiple_of(4);
    kernel.read("norm", if is_whole { "vec4<f32>" } else { "f32" }, vectors);
    kernel.float("EPS", norm.eps);
    let quad = |after: usize| match is_whole {
        true => format!("norm[{}u + i]", after * n_in / 4),
        false => {
            quad_of("norm", &format!("{}u + 4u * i", after * n_in), &format!("{}u", (after + 1) * n_in - 1))
        }
    };
    let bias = if norm.bias.is_some() { quad(1) } else { "vec4<f32>()".into() };
    let mean = match norm.kind {
        NormKind::Rms => "0.0".to_string(),
        NormKind::Layer => "mean_of(lane, row)".to_string(),
    };
    kernel.part(include_str!("../wgsl/statistics.wgsl"));
    kernel.part(&format!(
        "fn statistics(lane: u32, row: u32) -> vec2<f32> {{ return spread_around(lane, row, {mean}); }}\n\
         fn normed_quad(v: vec4<f32>, s: vec2<f32>, i: u32) -> vec4<f32> {{\n    \
         return fma((v - s.x) * s.y, {}, {bias});\n}}",
        quad(0)
    ));
}
