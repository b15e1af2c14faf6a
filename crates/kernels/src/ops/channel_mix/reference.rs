use super::ChannelMix;
use crate::ops::Activation;
use crate::ops::shift_mix::reference::{normed_with_previous, shifted};
use crate::reference::{Cx, activate};

pub(crate) fn run(op: &ChannelMix, cx: &mut Cx) {
    let mix = cx.vector(op.mix);
    let pairs = normed_with_previous(cx, op.x, &op.norm, op.state);
    let x: Vec<Vec<f32>> = pairs.iter().map(|(now, before)| shifted(now, before, &mix)).collect();
    for (row, y) in cx.linear_all(op.weight, &x, None).iter().enumerate() {
        let out: Vec<f32> = y.iter().map(|&v| activate(Activation::SquaredRelu, v)).collect();
        cx.set_row(op.out, row, &out);
    }
}
