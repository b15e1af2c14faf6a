//! Vocabularies, tokenizer files and templates that lie, contradict themselves or never end: each gets a plain error or
//! a harmless meaning, in little time.

use std::time::{Duration, Instant};

use exotherm_tokenizer::{ChatTemplate, Companions, GgufVocab, Message, Specials, Tokenizer};
use serde_json::{Value, json};

fn bpe() -> GgufVocab<'static> {
    GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: vec![b"a", b"b", b"ab", b"<end>"],
        types: vec![1, 1, 1, 3],
        merges: vec![b"a b"],
        ..GgufVocab::default()
    }
}

fn spm() -> GgufVocab<'static> {
    GgufVocab {
        model: "llama".into(),
        tokens: vec![b"<unk>", b"<s>", b"</s>", b"a", b"b", b"ab"],
        types: vec![2, 3, 3, 1, 1, 1],
        scores: vec![0.0, 0.0, 0.0, -2.0, -3.0, -1.0],
        add_space_prefix: Some(false),
        ..GgufVocab::default()
    }
}

fn refusal(vocab: GgufVocab<'_>) -> String {
    Tokenizer::from_gguf(vocab).expect_err("must be refused").to_string()
}

#[test]
fn what_contradicts_itself_is_refused_by_name() {
    assert!(refusal(GgufVocab { model: "t5".into(), ..bpe() }).contains("'t5'"));
    assert!(refusal(GgufVocab { pre: Some("nonsense".into()), ..bpe() }).contains("'nonsense'"));
    assert!(refusal(GgufVocab { tokens: vec![], ..bpe() }).contains("tokenizer.ggml.tokens"));
    assert!(refusal(GgufVocab { merges: vec![], ..bpe() }).contains("merges"));
    assert!(refusal(GgufVocab { types: vec![1, 1], ..bpe() }).contains("2 token types"));
    assert!(refusal(GgufVocab { scores: vec![0.0], ..spm() }).contains("1 scores"));
    assert!(refusal(GgufVocab { scores: vec![], ..spm() }).contains("scores"));
    assert!(refusal(GgufVocab { bos: Some(4), ..bpe() }).contains("bos token is 4"));
    assert!(refusal(GgufVocab { eos: Some(4_000_000_000), ..bpe() }).contains("eos token"));
    assert!(refusal(GgufVocab { add_bos: Some(true), ..bpe() }).contains("add_bos_token"));
}

#[test]
fn a_chat_template_that_does_not_compile_spoils_only_chats() {
    let broken = || Some("{% if %}".to_owned());
    let companions = Companions { chat_template: broken(), ..Companions::default() };
    let in_config = Companions {
        tokenizer_config: Some(json!({ "chat_template": "{% if %}" })),
        ..Companions::default()
    };
    let json = serde_json::to_vec(&bpe_json()).expect("JSON");
    let mut tokenizers = [
        Tokenizer::from_gguf(GgufVocab { chat_template: broken(), ..bpe() }),
        Tokenizer::from_tokenizer_json(&json, &companions),
        Tokenizer::from_tokenizer_json(&json, &in_config),
        Tokenizer::from_rwkv_vocab(b"1 'a' 1\n2 'b' 1\n", &companions),
    ]
    .map(|built| built.expect("text can still be encoded"));
    for tokenizer in &mut tokenizers {
        assert!(!tokenizer.encode("a", Specials::NONE).expect("ids").is_empty());
        for _ in 0..2 {
            let error = tokenizer.chat_template().expect_err("does not compile").to_string();
            assert!(error.starts_with("the chat template is malformed: syntax error"), "{error}");
        }
        tokenizer.set_chat_template(ChatTemplate::new("{{ 'fine' }}").expect("compiles"));
        let template = tokenizer.chat_template().expect("compiles").expect("is there");
        assert_eq!(template.render(&[], true, &json!({})).expect("renders"), "fine");
    }
    assert!(Tokenizer::from_gguf(bpe()).expect("builds").chat_template().expect("no fault").is_none());
}

#[test]
fn odd_vocabularies_keep_their_sane_part() {
    let odd = GgufVocab {
        // Empty tokens, a token twice, a control token that looks like text, bytes that are no UTF-8.
        tokens: vec![b"a", b"", b"a", b"b", b"ab", b"\xff\xfe", b"", b"ab"],
        types: vec![1, 1, 1, 1, 1, 1, 3, 3],
        // Nothing to merge, tokens that do not exist, a pair twice, no right side, only a space.
        merges: vec![b"", b"a", b"x y", b"a b", b"a b", b"a ", b" ", b"  ", b"ab b", b"\xff b"],
        eos: Some(u32::MAX),
        pad: Some(u32::MAX),
        unk: Some(77),
        ..bpe()
    };
    let tokenizer = Tokenizer::from_gguf(odd).expect("is usable");
    assert_eq!(tokenizer.encode("aab", Specials::NONE).expect("known bytes"), [0, 4]);
    assert_eq!(tokenizer.encode("ab", Specials::PARSE).expect("known bytes"), [7]);
    assert_eq!(tokenizer.piece(1), Some(&b""[..]));
    assert_eq!(tokenizer.piece(8), None);
    assert_eq!(tokenizer.eos(), None);
    let error = tokenizer.encode("abc", Specials::NONE).expect_err("c is unknown").to_string();
    assert!(error.contains("0x63") && error.contains("offset 2"), "{error}");
    let error = tokenizer.decode(&[0, 8], true).expect_err("8 is no token").to_string();
    assert!(error.contains("id 8"), "{error}");
    assert!(tokenizer.stream().push(u32::MAX).is_err());
}

#[test]
fn user_text_never_becomes_a_control_token() {
    let vocab = GgufVocab {
        tokens: vec![b"<unk>", b"<s>", b"<", b"s", b">", b"<s"],
        types: vec![2, 3, 1, 1, 1, 1],
        scores: vec![0.0; 6],
        ..spm()
    };
    let tokenizer = Tokenizer::from_gguf(vocab).expect("builds");
    assert_eq!(tokenizer.encode("<s>", Specials::NONE).expect("spelled"), [5, 4]);
    assert_eq!(tokenizer.encode("<s>", Specials::PARSE).expect("read"), [1]);
}

#[test]
fn scores_that_are_no_numbers_still_merge_in_some_order() {
    let vocab = GgufVocab {
        scores: vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0, f32::NAN],
        ..spm()
    };
    let tokenizer = Tokenizer::from_gguf(vocab).expect("builds");
    assert_eq!(tokenizer.encode("ab", Specials::NONE).expect("known"), [5]);
    assert_eq!(tokenizer.encode("é", Specials::NONE).expect("unknown text has a token"), [0]);
}

#[test]
fn rwkv_escapes_that_break_off_are_refused() {
    let rwkv = |token: &'static [u8]| GgufVocab {
        model: "rwkv".into(),
        tokens: vec![b"<s>", token],
        ..Default::default()
    };
    for token in [&b"\\"[..], b"\\x", b"\\x0", b"\\xzz", b"a\\"] {
        assert!(refusal(rwkv(token)).contains("token 1"), "{token:?}");
    }
    assert_eq!(Tokenizer::from_gguf(rwkv(b"\\x0a\\\\")).expect("builds").piece(1), Some(&b"\n\\"[..]));
}

#[test]
fn long_runs_take_linear_time() {
    let long = ["a".repeat(300_000), "ab".repeat(150_000), "b".repeat(300_000)];
    for vocab in [bpe(), spm()] {
        let tokenizer = Tokenizer::from_gguf(vocab).expect("builds");
        for text in &long {
            let start = Instant::now();
            tokenizer.encode(text, Specials::NONE).expect("known bytes");
            assert!(start.elapsed() < Duration::from_secs(5));
        }
    }
}

#[test]
fn a_folder_that_cannot_be_read_is_named_and_its_cause_chained() {
    let error = Tokenizer::from_dir(std::path::Path::new("/nowhere/at/all")).expect_err("is not there");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(error.to_string().contains("/nowhere/at/all") && !error.to_string().contains(&cause), "{error}");
}

fn bpe_json() -> Value {
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2 }, "merges": ["a b"] },
    })
}

fn json_tokenizer(change: impl Fn(&mut Value)) -> Result<Tokenizer, exotherm_tokenizer::TokenizerError> {
    let mut json = bpe_json();
    change(&mut json);
    Tokenizer::from_tokenizer_json(&serde_json::to_vec(&json).expect("JSON"), &Companions::default())
}

#[test]
fn tokenizer_json_that_lies_is_refused() {
    assert_eq!(json_tokenizer(|_| ()).expect("builds").encode("abab", Specials::NONE).expect("ids"), [2, 2]);
    let refused =
        |change: &dyn Fn(&mut Value)| json_tokenizer(change).expect_err("must be refused").to_string();
    assert!(refused(&|j| j["model"]["merges"] = json!(["a z"])).contains("malformed"));
    assert!(refused(&|j| j["model"]["vocab"]["b"] = json!(4_000_000_000u32)).contains("sparse"));
    assert!(refused(&|j| j["model"]["vocab"]["b"] = json!(0)).contains("sparse, or given twice"));
    assert!(refused(&|j| j["model"]["vocab"]["b"] = json!(-1)).contains("malformed"));
    // The crate underneath panics at these three.
    assert!(
        refused(&|j| j["model"]["vocab"] = json!({ "a": 0, "b": 1 })).contains("longer than every token")
    );
    assert!(refused(&|j| j["model"]["merges"] = json!([["ab", "ab"]])).contains("longer than every token"));
    assert!(refused(&|j| j["model"]["continuing_subword_prefix"] = json!("####")).contains("subword_prefix"));
    assert!(refused(&|j| j["model"]["dropout"] = json!(0.5)).contains("dropout"));
    assert!(refused(&|j| j["model"] = json!({ "type": "Nonsense" })).contains("malformed"));
    assert!(refused(&|j| j["decoder"] = json!({ "type": "CTC" })).contains("CTC"));
    assert!(refused(&|j| j["pre_tokenizer"] = json!({ "type": "Sequence" })).contains("pre-tokenizer"));
    let split = |regex: &str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    assert!(refused(&|j| j["pre_tokenizer"] = split("(")).contains("pattern"));
    assert!(refused(&|j| j["pre_tokenizer"] = split(r"(?:\p{L}{1000}){1000}")).contains("pattern"));
    let replace = json!({ "type": "Replace", "pattern": { "Regex": r"(a+)+(?!b)" }, "content": "" });
    assert!(refused(&|j| j["normalizer"] = replace.clone()).contains("normalizer"));
    let added = json!({ "id": 9, "content": "<x>", "special": true, "single_word": false, "lstrip": false,
                        "rstrip": false, "normalized": false });
    assert!(refused(&|j| j["added_tokens"] = json!([added])).contains("\"<x>\""));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for bytes in [&b""[..], b"{}", b"[]", b"null", b"\xff", deep.as_bytes()] {
        assert!(Tokenizer::from_tokenizer_json(bytes, &Companions::default()).is_err());
    }
}

#[test]
fn a_pattern_that_backtracks_forever_is_an_error_and_not_half_a_text() {
    let tokenizer = json_tokenizer(|j| {
        j["pre_tokenizer"] = json!({ "type": "Split", "pattern": { "Regex": r"(?:a|a|aa)+(?!a|b)$(?<!a)" },
                                     "behavior": "Isolated", "invert": false });
    })
    .expect("the pattern is valid");
    let start = Instant::now();
    let error = tokenizer.encode(&"a".repeat(60), Specials::NONE).expect_err("gives up").to_string();
    assert!(error.contains("backtracking"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
}

fn render(source: &str) -> Result<String, String> {
    let template = ChatTemplate::new(source).map_err(|e| e.to_string())?;
    let messages = [Message::new("user", "hello")];
    template.render(&messages, true, &json!({ "bos_token": "<s>" })).map_err(|e| e.to_string())
}

#[test]
fn templates_without_an_end_end_in_an_error() {
    let endless = [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% for k in range(100000) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}{% endfor %}",
        "{% for i in range(10000000000) %}x{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('ab') }}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(200) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(200) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='a') %}{% for i in range(200) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(200) %}{% set ns.x = ns.x|replace('a', 'aaaaaaaaaaaaaaaa') %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(200) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(200) %}{% set ns.x = [ns.x, ns.x]|join %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(200) %}{% set ns.x = ns.x.join([ns.x, ns.x, ns.x]) %}{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = ns.l + ['ab' * 5000000] %}{% endfor %}",
        "{{ ('a' * 99999999)|indent(99999999) }}",
        "{{ ([1] * 99999999)|list|length }}",
        "{{ 'x' * 99999999 }}",
        "{{ 'x' * 99999999999 }}",
        "{% include 'chat' %}",
        "{% extends 'chat' %}",
        "{% import 'chat' as c %}",
        "{% for m in [messages] recursive %}{{ loop([m]) }}{% endfor %}",
    ];
    for source in endless {
        let start = Instant::now();
        let result = render(source);
        assert!(result.is_err(), "{source} gave {:?}", result.map(|text| text.len()));
        let taken = start.elapsed();
        assert!(taken < Duration::from_secs(4), "{source} took {taken:?}");
    }
    let nested = format!("{}{}", "{% with x = 'ab' %}", "{% with x = x ~ x %}".repeat(60));
    assert!(render(&format!("{nested}{}", "{% endwith %}".repeat(61))).is_err());
    for deep in ["(".repeat(100_000), "{{ ".to_owned() + &"[".repeat(100_000), "{% if 1 %}".repeat(50_000)] {
        assert!(render(&format!("{{{{ {deep}")).is_err());
    }
    assert!(ChatTemplate::new(&"x".repeat(2 << 20)).is_err());
}

/// Values that lie within themselves or very deep, and expressions as long chains: what walks them recurses.
#[test]
fn deep_and_cyclic_templates_stay_on_the_stack() {
    let refused = [
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "{% set ns = namespace(a=1, b=1) %}{% for i in range(60) %}{% set ns.a = [ns.b, ns.b] %}\
         {% set ns.b = [ns.a, ns.a] %}{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% for i in range(90000) %}{% set ns.l = ns.l + [i] %}{% endfor %}",
        "{% macro f(x, n) %}{{ f([x], n - 1) }}{% endmacro %}{{ f([], 9) }}",
    ];
    for source in refused {
        let start = Instant::now();
        assert!(render(source).is_err(), "{source}");
        assert!(start.elapsed() < Duration::from_secs(4), "{source}");
    }
    // What a namespace is given it copies, so it never comes to hold itself.
    let itself = "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{% set ns.x = [ns] %}";
    assert_eq!(render(&format!("{itself}{{{{ ns.x[0].x.x }}}}")).as_deref().ok(), Some("1"));
    for print in ["{{ ns }}", "{{ ns|string }}", "{{ ns == ns.x }}", "{{ ns|tojson }}", "{{ [ns]|sort }}"] {
        assert!(render(&format!("{itself}{print}")).is_ok(), "{print}");
    }
    for (link, most) in [("not ", 2000), ("+1", 4000), (".a", 4000), ("|f", 4000), ("-", 8000), ("()", 4000)]
    {
        for (before, after) in [("", "1"), ("1", "")] {
            // Refused or not, it must come back; one link more than a tag may have is refused.
            let _ = render(&format!("{{{{ {before}{}{after} }}}}", link.repeat(most)));
            let beyond = format!("{{% set x = {before}{}{after} %}}", link.repeat(2 * most));
            assert!(ChatTemplate::new(&beyond).is_err(), "{link}");
        }
    }
    let _ = render(&format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(60_000)));
}

#[test]
fn broken_templates_are_refused() {
    for source in [
        "{%",
        "{{",
        "{% set %}",
        "{% set x = %}",
        "{% for %}",
        "{% macro %}",
        "{% macro f( %}",
        "{% generation %}",
        "{% raw %}",
        "{%-",
        "{% set x = 'a %}",
        "{{ 'a }}",
        "{% endfor %}",
        "{%%}",
        "{%-%}",
        "{%--%}",
    ] {
        assert!(render(source).is_err(), "{source}");
    }
    assert_eq!(
        render("{{ raise_exception('no tools here') }}")
            .expect_err("raised")
            .matches("no tools here")
            .count(),
        1
    );
    assert!(render("{{ strftime_now('%') }}").is_err());
}
