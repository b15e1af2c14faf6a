//! Any bytes as a GGUF file: whatever opens must then be readable to the last value and tensor.
#![no_main]

use exotherm_weights::{Checkpoint, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut checkpoint) = Checkpoint::from_gguf_bytes(bytes.to_vec()) else { return };
    let metadata = checkpoint.metadata();
    assert_eq!(metadata.iter().count(), metadata.len());
    for (key, value) in metadata.iter() {
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len());
            assert!(array.is_empty() || array.get(array.len() - 1).is_some());
        }
        let _ = (metadata.u64(key), metadata.f32(key), metadata.str(key), metadata.u64_at(key, 3));
        let _ = metadata.i32s(key).map(Iterator::count);
    }
    let names: Vec<String> = checkpoint.names().map(str::to_string).collect();
    for name in names {
        let (_, shape) = checkpoint.info(&name).expect("every GGUF tensor is a weight");
        let shape = shape.to_vec();
        let tensor = checkpoint.take(&name, &shape).expect("what is listed can be taken");
        assert!(tensor.bytes().len() <= bytes.len());
    }
    checkpoint.finish(&|_| false).expect("all was taken");
});
