//! Any bytes as a safetensors file: whatever opens must then be readable to the last tensor.
#![no_main]

use exotherm_weights::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut checkpoint) = Checkpoint::from_safetensors_bytes(bytes.to_vec()) else { return };
    let names: Vec<String> = checkpoint.names().map(str::to_string).collect();
    for name in names {
        let Some((_, shape)) = checkpoint.info(&name) else { continue };
        // The format allows what no weight has: no dimension at all, or one of zero.
        let shape = if shape.is_empty() { vec![1] } else { shape.to_vec() };
        let taken = checkpoint.take(&name, &shape);
        assert_eq!(taken.is_ok(), !shape.contains(&0));
        assert!(taken.is_ok_and(|t| t.bytes().len() <= bytes.len()) || shape.contains(&0));
    }
});
