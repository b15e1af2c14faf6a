//! Vocabularies from GGUF-like pieces, tokenizer.json and RWKV vocabularies: whatever loads must encode and decode.
#![no_main]

use exotherm_tokenizer::{Companions, GgufVocab, Specials, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let tokenizer = match kind % 5 {
        0 => Tokenizer::from_tokenizer_json(rest, &Companions::default()),
        1 => Tokenizer::from_rwkv_vocab(rest, &Companions::default()),
        model => Tokenizer::from_gguf(vocab(["gpt2", "llama", "rwkv"][model as usize - 2], rest)),
    };
    let Ok(tokenizer) = tokenizer else { return };
    for specials in [Specials::NONE, Specials::PARSE, Specials::ADD] {
        if let Ok(ids) = tokenizer.encode_bytes(rest, specials) {
            let text = tokenizer.decode(&ids, true).expect("a tokenizer knows its own ids");
            let mut stream = tokenizer.stream_with_special();
            let mut streamed: String = ids.iter().map(|&id| stream.push(id).expect("known")).collect();
            streamed.push_str(&stream.finish());
            assert_eq!(streamed, text);
        }
    }
    let _ = tokenizer.encode("The 3 quick\nbrown\u{a0}foxes \u{1f98a}", Specials::ADD);
});

/// Lines are tokens (their first byte is type and score) until an empty line; then they are merges.
fn vocab<'a>(model: &str, data: &'a [u8]) -> GgufVocab<'a> {
    let mut vocab = GgufVocab { model: model.into(), ..GgufVocab::default() };
    let mut lines = data.split(|&byte| byte == b'\n');
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        vocab.types.push(i32::from(line[0] % 7));
        vocab.scores.push(f32::from(line[0]) - 100.0);
        vocab.tokens.push(&line[1..]);
    }
    vocab.merges = lines.collect();
    vocab.bos = data.first().map(|&byte| u32::from(byte));
    vocab
}
