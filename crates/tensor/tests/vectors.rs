//! The block formats against vectors that `xtask/golden/quant_vectors.py` made with the `gguf` package and ggml.

use std::path::Path;

use exotherm_tensor::{DType, formats};

fn data(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (values, rest) = bytes.as_chunks();
    assert!(rest.is_empty());
    values.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

fn encoded(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xA5; dtype.row_bytes(values.len()).expect("whole blocks")];
    formats::encode(dtype, values, &mut bytes);
    bytes
}

fn decoded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    formats::decode(dtype, bytes, &mut values);
    values
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn decoding_agrees_bit_for_bit() {
    for dtype in DType::all() {
        let file = data(&format!("decode_{dtype}.bin"));
        let record = dtype.block_bytes() + 4 * dtype.block_len();
        assert!(!file.is_empty() && file.len().is_multiple_of(record));
        let (blocks, want): (Vec<_>, Vec<_>) =
            file.chunks(record).map(|r| r.split_at(dtype.block_bytes())).unzip();
        let (blocks, want) = (blocks.concat(), floats(&want.concat()));
        for (i, (got, want)) in decoded(dtype, &blocks).iter().zip(&want).enumerate() {
            let (block, element) = (i / dtype.block_len(), i % dtype.block_len());
            assert!(same(*got, *want), "{dtype} block {block} element {element}: {got:e} is not {want:e}");
        }
    }
}

#[test]
fn encoding_agrees_byte_for_byte() {
    let input = floats(&data("encode_input.bin"));
    let types = [DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1];
    for dtype in types {
        let (got, want) = (encoded(dtype, &input), data(&format!("encode_{dtype}.bin")));
        let row_bytes = dtype.row_bytes(32).expect("a row is 32 elements");
        assert_eq!(got.len(), want.len());
        for (row, (got, want)) in got.chunks(row_bytes).zip(want.chunks(row_bytes)).enumerate() {
            assert_eq!(got, want, "{dtype} row {row}: {:?}", &input[32 * row..32 * row + 32]);
        }
    }
}

#[test]
fn k_quants_err_no_more_than_ggml() {
    const ROW: usize = 512;
    const ALLOWED: f64 = 1.02;
    let input = floats(&data("k_input.bin"));
    let errors = String::from_utf8(data("k_errors.txt")).expect("text");
    let rows = input.len() / ROW;
    assert_eq!(errors.lines().count(), 5 * rows);
    for (i, line) in errors.lines().enumerate() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [dtype, distribution, limit] = fields[..] else { panic!("{line}") };
        let dtype = DType::from_name(dtype).expect("a type");
        let limit: f64 = limit.parse().expect("a number");
        let row = &input[i % rows * ROW..][..ROW];
        let error = squared_error(row, &decoded(dtype, &encoded(dtype, row)));
        println!("{dtype} {distribution}: {error:e}, ratio {:.5}", error / limit);
        assert!(error <= ALLOWED * limit, "{dtype} {distribution}: {error:e}, ggml {limit:e}");
    }
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum()
}
