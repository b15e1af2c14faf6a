//! Properties of the block formats that hold for any input.

use exotherm_tensor::{DType, formats};
use proptest::prelude::*;

fn round_trip(dtype: DType, values: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0xA5; dtype.row_bytes(values.len()).expect("whole blocks")];
    let mut back = vec![0.0; values.len()];
    formats::encode(dtype, values, &mut bytes);
    formats::decode(dtype, &bytes, &mut back);
    back
}

/// Blocks of 32 whose scales are well inside the range of f16.
fn block() -> impl Strategy<Value = Vec<f32>> {
    (prop::collection::vec(-1.0f32..1.0, 32), -6..10, -1.0f32..1.0).prop_map(|(values, exponent, shift)| {
        let scale = (exponent as f32).exp2();
        values.iter().map(|v| scale * (v + shift)).collect()
    })
}

fn largest_magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| v.abs().max(m))
}

/// What storing a scale as f16 may add to the error of a value that is `codes` steps away from the middle.
fn scale_rounding(step: f32, codes: f32) -> f32 {
    step * codes / 2048.0
}

proptest! {
    #[test]
    fn q8_0_errs_by_half_a_step(values in block()) {
        let step = largest_magnitude(&values) / 127.0;
        let bound = step * 0.5001 + scale_rounding(step, 127.0) + 1e-9;
        for (v, back) in values.iter().zip(round_trip(DType::Q8_0, &values)) {
            prop_assert!((v - back).abs() <= bound, "{v} {back}, bound {bound}");
        }
    }

    /// The peak takes the code at the end that has one step more; what lies past the other end loses up to a step.
    #[test]
    fn symmetric_types_err_by_half_a_step_inside_their_range(values in block()) {
        for (dtype, codes) in [(DType::Q4_0, 8.0), (DType::Q5_0, 16.0)] {
            let peak = largest_magnitude(&values);
            let step = peak / codes;
            let negative_end = *values.iter().find(|v| v.abs() == peak).expect("the peak is one of them");
            for (v, back) in values.iter().zip(round_trip(dtype, &values)) {
                let past_the_end = v * negative_end.signum() < -(codes - 0.5) * step;
                let steps = if past_the_end { 1.0001 } else { 0.5001 };
                let bound = step * steps + scale_rounding(step, codes) + 1e-6 * step;
                prop_assert!((v - back).abs() <= bound, "{dtype}: {v} {back}, bound {bound}");
            }
        }
    }

    #[test]
    fn types_with_a_minimum_err_by_half_a_step(values in block()) {
        let min = values.iter().copied().fold(f32::INFINITY, f32::min);
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for (dtype, codes) in [(DType::Q4_1, 15.0), (DType::Q5_1, 31.0)] {
            let step = (max - min) / codes;
            let bound = step * 0.5001 + scale_rounding(step, codes) + scale_rounding(min.abs(), 1.0) + 1e-6;
            for (v, back) in values.iter().zip(round_trip(dtype, &values)) {
                prop_assert!((v - back).abs() <= bound, "{dtype}: {v} {back}, bound {bound}");
            }
        }
    }

    #[test]
    fn a_block_depends_on_its_own_values_alone(a in block(), b in block()) {
        for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1] {
            let both = round_trip(dtype, &[a.clone(), b.clone()].concat());
            prop_assert_eq!(&both[32..], round_trip(dtype, &b));
        }
    }

    /// Any bits at all: infinities, NaNs and subnormals among them.
    #[test]
    fn no_input_panics(bits in prop::collection::vec(any::<u32>(), 256)) {
        let values: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        for dtype in DType::all() {
            round_trip(dtype, &values);
        }
    }

    #[test]
    fn any_bytes_decode(bytes in prop::collection::vec(any::<u8>(), 256)) {
        for dtype in DType::all() {
            let bytes = &bytes[..bytes.len() / dtype.block_bytes() * dtype.block_bytes()];
            let mut out = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
            formats::decode(dtype, bytes, &mut out);
        }
    }
}

#[test]
fn values_that_are_not_finite_do_not_panic() {
    let wave: Vec<f32> = (0..256).map(|i| (i as f32).sin()).collect();
    for dtype in DType::all() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45] {
            round_trip(dtype, &[odd; 256]);
            for at in [0, 1, 255] {
                let mut values = wave.clone();
                values[at] = odd;
                round_trip(dtype, &values);
            }
        }
    }
}

#[test]
fn float_types_keep_what_is_not_finite() {
    let mut values = [1.0f32; 256];
    values[..3].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let back = round_trip(dtype, &values);
        assert!(back[0].is_nan());
        assert_eq!(back[1..], values[1..]);
    }
}
