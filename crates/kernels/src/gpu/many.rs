//! Products of many rows with matrices: tiles of rows and outputs, whose sums lie in registers.
//!
//! A small kernel norms the rows and rounds them to halves, each with a power of two of its own (see
//! [`crate::rounding::half_scales`]). A workgroup of the product brings [`Shape::units`] units of the tile's rows and weights into
//! its memory at a time, weights as halves, and multiplies what lies there while the next ones are on their way to registers. Sums
//! are floats, and their order depends on the shape of the kernel and the matrix alone. Blocks of 16 by 16 sums are multiplied as
//! matrices where the device does that, and by each lane for itself elsewhere: that is the only difference of the two.

use std::ops::RangeInclusive;

use exotherm_tensor::DType;

use super::device::Traits;
use super::kernel::{Extension, Kernel};
use super::linear::{self, Input, Output, Part};
use super::record::{ALL_ROWS, Count, Recorder, View};
use super::unrolled::{parts_of, unrolled};
use crate::backend::BackendError;
use crate::layout::UNIT;
use crate::program::{MatId, Rows};

/// Lanes that prepare a row.
const ROW_LANES: usize = 128;

/// Units that prepared rows are padded to: what any shape takes at a time divides it.
const PADDING: usize = 8;

/// How the tile of a workgroup is shared out among groups of lanes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// Groups beside each other along the rows, the outputs (an even number) and the columns.
    across: [usize; 3],
    /// Blocks of 16 by 16 sums that a group has along the rows and the outputs.
    blocks: [usize; 2],
    /// Units of 32 columns that are multiplied at a time; the groups along the columns have equal parts of them.
    units: usize,
    /// Tiles in workgroup memory: with two, one is written while the other is read.
    buffers: usize,
    /// Lanes of a group.
    lanes: usize,
    with_matrices: bool,
}

/// With matrices of a device that multiplies them as a whole: large tiles, so that what comes from memory is used often.
const LARGE: Shape =
    Shape { across: [2, 2, 1], blocks: [4, 4], units: 1, buffers: 2, lanes: 32, with_matrices: true };
/// Half as many rows, for experts, of whose rows there are fewer.
const MEDIUM: Shape = Shape { blocks: [2, 4], ..LARGE };
/// Few rows, whose weights are all that counts: many lanes read them at the same time.
const SKINNY: Shape = Shape { across: [1, 2, 4], blocks: [2, 1], units: 8, buffers: 1, ..LARGE };
const THIN: Shape = Shape { blocks: [1, 1], ..SKINNY };
/// The first of each is what is taken; the others are for measurements to hold it to.
const LARGE_TILES: [Shape; 5] = [
    LARGE,
    Shape { buffers: 1, ..LARGE },
    Shape { units: 2, buffers: 1, ..LARGE },
    Shape { across: [2, 4, 1], buffers: 1, ..LARGE },
    Shape { across: [4, 2, 1], buffers: 1, ..LARGE },
];
const SKINNY_TILES: [Shape; 3] =
    [SKINNY, Shape { blocks: [2, 2], units: 4, ..SKINNY }, Shape { across: [1, 2, 2], units: 4, ..SKINNY }];
/// Without such matrices, in the memory that every device has.
const PLAIN: Shape =
    Shape { across: [2, 2, 1], blocks: [2, 2], units: 1, buffers: 1, lanes: 32, with_matrices: false };
const PLAIN_SKINNY: Shape = Shape { across: [1, 2, 2], blocks: [1, 2], units: 2, ..PLAIN };

/// How many choices of tiles there are.
#[cfg(test)]
pub(crate) const TILES: usize = LARGE_TILES.len();

/// Products of rows with a matrix, or of pairs of a row and an expert.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Rows,
    Experts,
}

impl Shape {
    fn several(traits: &Traits, of: Of) -> Shape {
        match of {
            Of::Rows => SKINNY_TILES[traits.tiles % SKINNY_TILES.len()].on(traits, PLAIN_SKINNY),
            Of::Experts => THIN.on(traits, PLAIN_SKINNY),
        }
    }

    fn many(traits: &Traits, of: Of) -> Shape {
        match of {
            Of::Rows => LARGE_TILES[traits.tiles % LARGE_TILES.len()].on(traits, PLAIN),
            Of::Experts => MEDIUM.on(traits, PLAIN),
        }
    }

    /// This one where the device has the matrices and the memory for it, or one with less at a time.
    fn on(self, traits: &Traits, plain: Shape) -> Shape {
        if !traits.large_tiles {
            return plain;
        }
        let lanes =
            traits.subgroup.filter(|_| traits.matrices).map_or(PLAIN.lanes, |(lanes, _)| lanes as usize);
        let shape = Shape { lanes, with_matrices: traits.matrices, ..self };
        let single = Shape { buffers: 1, ..shape };
        let fewer = Shape { units: single.units.div_ceil(2), ..single };
        let fits = |shape: &Shape| shape.memory() <= traits.workgroup_memory;
        [shape, single, fewer].into_iter().find(fits).unwrap_or(plain)
    }

    fn groups(&self) -> usize {
        self.across.iter().product()
    }

    fn workgroup(&self) -> usize {
        self.groups() * self.lanes
    }

    /// Rows of a tile.
    pub fn rows(&self) -> usize {
        16 * self.across[0] * self.blocks[0]
    }

    /// Outputs of a tile.
    pub fn outs(&self) -> usize {
        16 * self.across[1] * self.blocks[1]
    }

    /// Bytes that the lanes share: tiles, a block of sums for each group, and what sums over a workgroup take.
    fn memory(&self) -> usize {
        let pitch = 8 * (8 * self.units + 2);
        self.buffers * (self.rows() + self.outs()) * pitch + 1024 * self.groups() + 4 * self.workgroup()
    }

    /// A kernel that begins with what the tile of this shape is, for rows of so many units.
    pub fn kernel(&self, label: &'static str, traits: &Traits, units: usize) -> Kernel {
        let mut kernel = Kernel::new(label, self.workgroup());
        let of_rows = self.rows() * 8 * self.units;
        assert!(
            of_rows.is_multiple_of(self.workgroup()),
            "every lane brings as much of the rows as the others"
        );
        let sizes = [
            ("ROWS", self.rows()),
            ("OUTS", self.outs()),
            ("GROUPS", self.groups()),
            ("ACROSS_ROWS", self.across[0]),
            ("ACROSS_OUTS", self.across[1]),
            ("ACROSS_COLUMNS", self.across[2]),
            ("ROW_BLOCKS", self.blocks[0]),
            ("OUT_BLOCKS", self.blocks[1]),
            ("UNITS_AT_ONCE", self.units),
            ("BUFFERS", self.buffers),
            ("ROW_LOADS", of_rows / self.workgroup()),
            ("UNIT_LOADS", (self.outs() * self.units).div_ceil(self.workgroup())),
            ("UNITS", units),
            ("PREPARED", prepared_quads(units)),
        ];
        sizes.into_iter().for_each(|(name, value)| kernel.size(name, value));
        if traits.halves {
            kernel.enable(Extension::Halves);
        }
        if self.with_matrices {
            kernel.enable(Extension::Matrices);
        }
        kernel.part(match traits.halves {
            true => include_str!("wgsl/many_halves.wgsl"),
            false => include_str!("wgsl/many_words.wgsl"),
        });
        kernel
    }

    /// The product itself; all that it calls is there already. `skipped` are the statements that leave out a tile.
    pub fn finish(&self, kernel: &mut Kernel, skipped: &str) {
        let sums = parts_of(match self.with_matrices {
            true => include_str!("wgsl/many_matrices.wgsl"),
            false => include_str!("wgsl/many_plain.wgsl"),
        });
        let (input, group) = match self.with_matrices {
            true => ("@builtin(subgroup_id) number: u32,", "number"),
            false => ("", "lane / 32u"),
        };
        let mut text = include_str!("wgsl/many.wgsl").replace("$SKIPPED", skipped);
        text = text.replace("$GROUP_INPUT", input).replace("$GROUP", group);
        for (name, part) in sums {
            text = text.replace(&format!("${name}"), &part);
        }
        let counts = [
            ("ROW_LOADS", self.rows() * 8 * self.units / self.workgroup()),
            ("UNIT_LOADS", (self.outs() * self.units).div_ceil(self.workgroup())),
            ("ROW_BLOCKS", self.blocks[0]),
            ("OUT_BLOCKS", self.blocks[1]),
            ("HALF_UNITS", 2 * self.units / self.across[2]),
            ("EIGHT", 8),
        ];
        kernel.part(&unrolled(&text, &counts));
    }
}

/// Quads of a prepared row of so many units.
fn prepared_quads(units: usize) -> usize {
    8 * units.next_multiple_of(PADDING)
}

/// Whether products with weights of this type are made of halves.
pub(crate) fn takes(dtype: DType) -> bool {
    dtype != DType::F32
}

/// Steps of how many rows take which shape of tile, as far as there are steps of so many.
pub(crate) fn classes(recorder: &Recorder, of: Of) -> Vec<(RangeInclusive<usize>, Shape)> {
    let traits = recorder.traits;
    let most = recorder.limits.rows.max(recorder.limits.logit_rows);
    let (several, many) = (traits.several_from.min(traits.many_from), traits.many_from);
    let mut classes = Vec::new();
    if several < many && several <= most {
        classes.push((several..=many - 1, Shape::several(traits, of)));
    }
    if many <= most {
        classes.push((many..=usize::MAX, Shape::many(traits, of)));
    }
    classes
}

/// Steps of how many rows take the kernels for few.
pub(crate) fn few(traits: &Traits) -> Option<RangeInclusive<usize>> {
    match traits.several_from.min(traits.many_from) {
        0 => None,
        usize::MAX => Some(ALL_ROWS),
        from => Some(0..=from - 1),
    }
}

/// Rows as halves, and the inverses of what they are multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct Prepared {
    rows: View,
    inverses: View,
}

impl Prepared {
    pub fn bind(&self, kernel: &mut Kernel) {
        kernel.read("prepared", "Quad", self.rows);
        kernel.read("inverses", "f32", self.inverses);
    }
}

/// Norms rows of `columns` columns, `parts` of them in every row of the input, and rounds them.
pub(crate) fn prepare(
    recorder: &mut Recorder,
    input: &Input,
    columns: usize,
    parts: usize,
) -> Result<Prepared, BackendError> {
    let quads = prepared_quads(columns.div_ceil(UNIT));
    let most = recorder.most_rows(input.of);
    let rows = recorder.common_scratch("prepared rows", &[2 * quads, parts, most])?;
    let inverses = recorder.common_scratch("inverses", &[parts, most])?;
    let mut kernel = Kernel::new("many_rows", ROW_LANES);
    kernel.read("x", "f32", input.rows);
    kernel.write("prepared", "vec2<u32>", rows);
    kernel.write("inverses", "f32", inverses);
    kernel.size("PREPARED", quads);
    kernel.size("PARTS", parts);
    linear::write_input(recorder, &mut kernel, input, columns);
    kernel.part(include_str!("wgsl/many_rows.wgsl"));
    let [_, rows_of_step, _] = linear::counts(input.of, 1, 1);
    recorder.dispatch(&kernel, [rows_of_step, Count::Fixed(parts), Count::Fixed(1)]);
    Ok(Prepared { rows, inverses })
}

/// Rows times a matrix, in the steps that are not for the kernels for few rows.
pub(crate) fn record(
    recorder: &mut Recorder,
    label: &'static str,
    input: Input,
    weight: MatId,
    output: Output,
) -> Result<(), BackendError> {
    let matrix = recorder.program.matrix(weight);
    let n_in = matrix.n_in;
    for (rows, shape) in classes(recorder, Of::Rows) {
        recorder.for_rows(rows, |recorder| {
            let rounds = recorder.program.matrix(weight).segments.iter().any(|s| takes(s.dtype()));
            let prepared = rounds.then(|| prepare(recorder, &input, n_in, 1)).transpose()?;
            linear::each_product(recorder, weight, output, &mut |recorder, parts| {
                for part in parts {
                    match prepared {
                        Some(prepared) if takes(part.piece.layout.dtype) => {
                            product(recorder, (label, &shape), input.of, &prepared, part);
                        }
                        _ => linear::product(recorder, label, input, n_in, part),
                    }
                }
                Ok(())
            })
        })?;
    }
    Ok(())
}

fn product(
    recorder: &mut Recorder,
    (label, shape): (&'static str, &Shape),
    of: Rows,
    prepared: &Prepared,
    part: &Part,
) {
    let Part { piece, outs, halves, output } = part;
    let mut kernel = shape.kernel(label, recorder.traits, piece.layout.units);
    prepared.bind(&mut kernel);
    kernel.read("weights", "vec4<u32>", piece.view);
    kernel.size("HALVES", *halves);
    kernel.size("N_OUT", *outs);
    kernel.size("FIRST_OUT", piece.rows.start);
    kernel.size("STRIDE", piece.layout.stride / 4);
    linear::write_output(recorder, &mut kernel, output);
    kernel.part(&piece.layout.decoder("weights", ""));
    kernel.part(match of {
        Rows::Batch => "fn all_rows() -> u32 { return batch_rows(); }",
        Rows::Logits => "fn all_rows() -> u32 { return logit_rows(); }",
    });
    kernel.part(include_str!("wgsl/many_linear.wgsl"));
    shape.finish(&mut kernel, "");
    let [_, tiles, _] = linear::counts(of, 1, shape.rows());
    let out_tiles = outs.div_ceil(shape.outs() / halves);
    recorder.dispatch(&kernel, [tiles, Count::Fixed(out_tiles), Count::Fixed(1)]);
}
