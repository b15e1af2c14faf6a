//! Every pre-tokenizer and every kind of vocabulary against ids that llama.cpp gave (`xtask/golden/tokenizer_vectors.py`).

use exotherm_tokenizer::{Companions, GgufVocab, Specials, Tokenizer};
use serde_json::{Value, json};

fn vectors() -> Value {
    serde_json::from_str(include_str!("data/vectors.json")).expect("vectors.json is JSON")
}

fn texts<'a>(vectors: &'a Value, key: &str) -> Vec<&'a str> {
    vectors[key].as_array().expect("a list").iter().map(|text| text.as_str().expect("a text")).collect()
}

fn byte_list<'a>(vocab: &'a Value, key: &str) -> Vec<&'a [u8]> {
    vocab[key]
        .as_array()
        .map(|list| list.iter().map(|t| t.as_str().expect("a text").as_bytes()).collect())
        .unwrap_or_default()
}

fn vocab<'a>(vocab: &'a Value, model: &str) -> GgufVocab<'a> {
    let list = |key: &str| vocab[key].as_array().cloned().unwrap_or_default();
    GgufVocab {
        model: model.into(),
        tokens: byte_list(vocab, "tokens"),
        merges: byte_list(vocab, "merges"),
        scores: list("scores").iter().map(|score| score.as_f64().expect("a score") as f32).collect(),
        types: list("types").iter().map(|kind| kind.as_i64().expect("a type") as i32).collect(),
        ..GgufVocab::default()
    }
}

fn position(vocab: &GgufVocab<'_>, token: &str) -> Option<u32> {
    vocab.tokens.iter().position(|t| *t == token.as_bytes()).map(|id| id as u32)
}

fn bpe<'a>(vectors: &'a Value, pre: &str) -> GgufVocab<'a> {
    let mut vocab = vocab(&vectors["bpe"], "gpt2");
    vocab.pre = Some(pre.into());
    vocab.bos = position(&vocab, "<|im_start|>");
    vocab.eos = position(&vocab, "<|im_end|>");
    vocab
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// Checks plain text, text with control tokens read, and text with BOS and EOS; then the way back.
fn check(tokenizer: &Tokenizer, texts: &[&str], expected: &Value, name: &str) {
    let rows = expected.as_array().expect("a row per text");
    assert_eq!(rows.len(), texts.len());
    for (text, row) in texts.iter().zip(rows) {
        for (kind, specials) in [Specials::NONE, Specials::PARSE, Specials::ADD].into_iter().enumerate() {
            let found = tokenizer.encode(text, specials).expect("every byte is in the vocabulary");
            assert_eq!(found, ids(&row[kind]), "{name}, {specials:?}: {text:?}");
        }
        let plain = ids(&row[0]);
        let mut stream = tokenizer.stream_with_special();
        let mut streamed: String = plain.iter().map(|&id| stream.push(id).expect("a token")).collect();
        streamed.push_str(&stream.finish());
        assert_eq!(
            streamed,
            text.replace('\u{2581}', if name.starts_with("spm") { " " } else { "\u{2581}" })
        );
        assert_eq!(tokenizer.decode(&plain, true).expect("tokens"), streamed, "{name}: {text:?}");
    }
}

#[test]
fn byte_level_bpe_agrees_for_every_family_of_patterns() {
    let vectors = vectors();
    let families = vectors["bpe_ids"].as_object().expect("a list per family");
    assert_eq!(families.len(), 12);
    for (pre, expected) in families {
        let tokenizer = Tokenizer::from_gguf(bpe(&vectors, pre)).expect(pre);
        let key = if matches!(pre.as_str(), "tekken" | "gpt-4o" | "deepseek-coder") {
            "cased_texts"
        } else {
            "texts"
        };
        check(&tokenizer, &texts(&vectors, key), expected, pre);
    }
}

#[test]
fn sentencepiece_agrees_with_and_without_the_first_space() {
    let vectors = vectors();
    for (prefix, expected) in vectors["spm_ids"].as_object().expect("two lists") {
        let mut vocab = vocab(&vectors["spm"], "llama");
        vocab.add_space_prefix = Some(prefix == "true");
        vocab.add_eos = Some(prefix == "true");
        (vocab.unk, vocab.bos, vocab.eos) = (Some(0), Some(1), Some(2));
        let tokenizer = Tokenizer::from_gguf(vocab).expect("builds");
        check(&tokenizer, &texts(&vectors, "texts"), expected, &format!("spm {prefix}"));
    }
}

#[test]
fn rwkv_agrees_from_gguf_and_from_its_own_file() {
    let vectors = vectors();
    let vocab = vocab(&vectors["rwkv"], "rwkv");
    let mut file = String::new();
    for (id, token) in vocab.tokens.iter().enumerate().skip(1) {
        let text = std::str::from_utf8(token).expect("escaped text");
        let bytes = Tokenizer::from_gguf(vocab.clone()).expect("builds").piece(id as u32).map(<[u8]>::len);
        let quote = if text.contains('\'') { '"' } else { '\'' };
        let text = if quote == '"' { text.replace('"', "\\\"") } else { text.to_owned() };
        file.push_str(&format!("{id} b{quote}{text}{quote} {}\n", bytes.expect("a token")));
    }
    let from_file = Tokenizer::from_rwkv_vocab(file.as_bytes(), &Companions::default()).expect("builds");
    let from_gguf = Tokenizer::from_gguf(vocab).expect("builds");
    let rows = vectors["rwkv_ids"].as_array().expect("rows");
    for (text, row) in texts(&vectors, "texts").iter().zip(rows) {
        if text.contains("<s>") {
            // llama.cpp reads its stand-in for id 0 out of any text; here no user's text can end itself.
            assert!(!from_gguf.encode(text, Specials::ADD).expect("spelled").contains(&0));
            continue;
        }
        for tokenizer in [&from_gguf, &from_file] {
            let found = tokenizer.encode(text, Specials::ADD).expect("every byte is a token");
            assert_eq!(found, ids(&row[0]), "{text:?}");
            assert_eq!(tokenizer.decode(&found, true).expect("tokens"), *text);
        }
    }
    assert_eq!(from_file.end_of_generation(), [0]);
}

/// A tokenizer.json with the shared vocabulary and the pattern that the original of `pre` publishes.
fn tokenizer_json(vectors: &Value, pre_tokenizer: Value) -> Vec<u8> {
    let vocab = bpe(vectors, "default");
    let plain = vocab.types.iter().take_while(|&&kind| kind == 1).count();
    let text = |id: usize| std::str::from_utf8(vocab.tokens[id]).expect("text");
    let model: serde_json::Map<String, Value> =
        (0..plain).map(|id| (text(id).to_owned(), json!(id))).collect();
    let added: Vec<Value> = (plain..vocab.tokens.len())
        .map(|id| {
            json!({ "id": id, "content": text(id), "special": vocab.types[id] == 3, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": model, "merges": vectors["bpe"]["merges"] },
    });
    serde_json::to_vec(&json).expect("JSON")
}

#[test]
fn a_tokenizer_json_with_the_published_patterns_agrees_too() {
    let vectors = vectors();
    let split = |pattern: &str| {
        let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level] })
    };
    let words = |number: &str| {
        format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
    let gpt2 =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let digits = json!({ "type": "Digits", "individual_digits": true });
    let smollm = json!({ "type": "Sequence", "pretokenizers": [digits, gpt2] });
    let cases = [
        ("gpt-2", gpt2.clone()),
        ("smollm", smollm),
        ("qwen2", split(&words(r"\p{N}"))),
        ("glm4", split(&words(r"\p{N}{1,3}"))),
    ];
    for (pre, pre_tokenizer) in cases {
        let companions = Companions {
            tokenizer_config: Some(
                json!({ "bos_token": "<|im_start|>", "eos_token": { "content": "<|im_end|>" } }),
            ),
            generation_config: Some(json!({ "eos_token_id": [7, 3] })),
            ..Companions::default()
        };
        let tokenizer =
            Tokenizer::from_tokenizer_json(&tokenizer_json(&vectors, pre_tokenizer), &companions).expect(pre);
        // The same families from GGUF add nothing around a text either, so all three columns hold.
        check(&tokenizer, &texts(&vectors, "texts"), &vectors["bpe_ids"][pre], pre);
        let end = bpe(&vectors, pre).eos.expect("named");
        assert_eq!(tokenizer.end_of_generation(), [3, 7, end]);
        assert_eq!(tokenizer.eos(), Some(end));
        assert_eq!(tokenizer.bos(), tokenizer.token_id("<|im_start|>"));
    }
}

#[test]
fn bytes_that_are_no_text_survive_the_round_trip() {
    let vectors = vectors();
    let mut spm = vocab(&vectors["spm"], "llama");
    spm.add_space_prefix = Some(false);
    let plain_bpe =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let json = tokenizer_json(&vectors, plain_bpe);
    let tokenizers = [
        Tokenizer::from_gguf(bpe(&vectors, "llama-bpe")).expect("builds"),
        Tokenizer::from_gguf(spm).expect("builds"),
        Tokenizer::from_gguf(vocab(&vectors["rwkv"], "rwkv")).expect("builds"),
        Tokenizer::from_tokenizer_json(&json, &Companions::default()).expect("builds"),
    ];
    let bytes: Vec<u8> = (0..=255).chain(*b"ok \xe4\xbd\xa0 \xe4\xbd \xff\xfe end").collect();
    for tokenizer in &tokenizers {
        let ids = tokenizer.encode_bytes(&bytes, Specials::NONE).expect("every byte is a token");
        assert_eq!(tokenizer.decode_bytes(&ids, true).expect("tokens"), bytes);
        assert!(tokenizer.encode("", Specials::NONE).expect("nothing").is_empty());
    }
}
