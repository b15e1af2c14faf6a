//! How products are shared out among lanes.

/// What of that may be chosen freely: results do not depend on it bit for bit, and what is best for a device is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// Lanes of a workgroup.
    pub lanes: usize,
    /// Rows of weights that a lane works on at the same time, at most.
    pub outs: usize,
    /// Workgroups that keep the device busy: where there would be fewer, each makes fewer outputs. Half as many do where rows
    /// are not held.
    pub enough: usize,
    /// Workgroups beyond which each makes more outputs one after another, so that its beginning pays.
    pub most: usize,
    /// Bytes of rows that a workgroup holds.
    pub held: usize,
    /// Whether weights are on their way while those before them are multiplied.
    pub prefetch: bool,
    /// Steps of a row whose weights are loaded at once.
    pub unrolled: usize,
}

impl Tuning {
    /// For some hundred processors of a GPU, each with room for several workgroups.
    pub const GPU: Tuning =
        Tuning { lanes: 256, outs: 4, enough: 192, most: 528, held: 12 << 10, prefetch: true, unrolled: 1 };

    /// For processors in place of a GPU, so that small matrices take every path. Kernels of more outputs take long to compile.
    pub const SOFTWARE: Tuning =
        Tuning { lanes: 64, outs: 2, enough: 1, most: 2, held: 640, prefetch: true, unrolled: 1 };

    /// What is compared with one another.
    pub const VARIANTS: [(&'static str, Tuning); 4] = [
        ("baseline", Tuning { prefetch: false, outs: 1, ..Tuning::GPU }),
        ("prefetch", Tuning { outs: 1, ..Tuning::GPU }),
        ("unrolled", Tuning { prefetch: false, outs: 1, unrolled: 2, ..Tuning::GPU }),
        ("multi-row", Tuning::GPU),
    ];
}

/// What a kernel has to do.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub n_out: usize,
    /// One, or two for gates and ups.
    pub halves: usize,
    /// Rows that share the weights.
    pub tile: usize,
    /// How often there is all that at least.
    pub times: usize,
    /// Steps of a row of weights.
    pub steps: usize,
    /// Bytes of a step of a row that is multiplied, where workgroups hold them.
    pub held: Option<usize>,
}

/// How it is shared out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    /// Lanes that share an output.
    pub lanes: usize,
    /// Outputs, or pairs, that they make at the same time.
    pub outs: usize,
    /// How often a workgroup does so.
    pub rounds: usize,
    /// Steps that a workgroup holds at a time.
    pub chunk: usize,
    pub groups: usize,
}

impl Shape {
    /// `in_step` lanes can exchange values.
    pub fn of(tuning: &Tuning, in_step: usize, work: &Work) -> Shape {
        let lanes = work.steps.next_power_of_two().clamp(4, in_step);
        let groups_of = |outs: usize| work.n_out.div_ceil(tuning.lanes / lanes * outs);
        let mut outs = (tuning.outs / work.halves).max(1);
        // Rows that are not held are read anew for every few outputs.
        let enough = if work.held.is_some() { tuning.enough } else { tuning.enough / 2 };
        while outs > 1 && groups_of(outs) * work.times < enough {
            outs /= 2;
        }
        let chunk = match work.held {
            Some(bytes) => {
                let whole = in_step * tuning.unrolled;
                (tuning.held / (bytes * work.tile) / whole * whole).max(whole)
            }
            None => work.steps,
        };
        // What is held in pieces would be made anew for every round.
        let pays = work.held.is_some() && chunk >= work.steps;
        let rounds = if pays { (groups_of(outs) * work.times).div_ceil(tuning.most) } else { 1 };
        Shape { lanes, outs, rounds, chunk: chunk.min(work.steps), groups: groups_of(outs * rounds) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work { n_out: 4096, halves: 1, tile: 1, times: 1, steps: 128, held: Some(40) };

    #[test]
    fn the_device_is_busy_before_outputs_share_lanes() {
        let shape = |n_out| Shape::of(&Tuning::GPU, 32, &Work { n_out, ..WORK });
        assert_eq!((shape(1024).outs, shape(1024).groups), (1, 128));
        assert_eq!((shape(4096).outs, shape(4096).groups), (2, 256));
        assert_eq!((shape(6144).outs, shape(6144).groups), (4, 192));
        let many = shape(128_256);
        assert_eq!((many.outs, many.rounds), (4, 8));
        assert!(many.groups * many.rounds * many.outs * 8 >= 128_256);
    }

    #[test]
    fn long_rows_are_held_in_pieces_of_whole_steps_of_all_lanes() {
        let shape = Shape::of(&Tuning::GPU, 32, &Work { steps: 448, ..WORK });
        assert_eq!((shape.chunk, shape.rounds), (288, 1));
        let short = Shape::of(&Tuning::GPU, 32, &Work { steps: 3, ..WORK });
        assert_eq!((short.chunk, short.lanes), (3, 4));
    }
}
