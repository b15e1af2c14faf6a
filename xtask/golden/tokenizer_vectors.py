"""Makes crates/tokenizer/tests/data/vectors.json: small vocabularies, texts, and the ids that llama.cpp gives them.

The expected ids come from llama.cpp (through llama-cpp-python, `vocab_only`), which shares no code with the crate under
test. SentencePiece's own library checks the `llama` vocabulary a second time.

Pinned: llama-cpp-python 0.3.36, gguf 0.19.0, tokenizers 0.23.3 (trains the BPE), sentencepiece 0.2.3 (trains the SPM).

    python3 xtask/golden/tokenizer_vectors.py
"""

import io
import json
import pathlib
import tempfile

import gguf
import llama_cpp
import sentencepiece
import tokenizers

OUT = pathlib.Path(__file__).parents[2] / "crates/tokenizer/tests/data/vectors.json"

# One name for each family of patterns.
PRE = ["default", "gpt-2", "falcon", "smollm", "llama-bpe", "glm4", "qwen2", "qwen35", "deepseek-v3"]
# llama.cpp approximates the classes of the first two (letter case by ASCII, no marks), and reads every white space beyond ASCII as U+000B
# for patterns without classes, as the third has one. Their texts keep to where that makes no difference.
CASED = ["tekken", "gpt-4o", "deepseek-coder"]

CORPUS = """The quick brown fox jumps over the lazy dog. I'm sure you're right; he'll see that we've won, isn't it?
IT'S 2024-05-17 and 12345678 + 90 = 12345768, about 3.14159 or 1,000,000 $ and 50% <= 100%.
def main(argv):\n    for i in range(10):\n\tprint("hello", i)\n\n\nif x == y and not z:\r\n    return {'a': [1, 2, 3]}\n
你好，世界。这是一个测试。 日本語のテキスト、カタカナ。 한국어 문장입니다. ภาษาไทย مرحبا بالعالم नमस्ते दुनिया Привет, мир!
e\u0301 \u00e9 \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 nb\u00a0sp ... --- ___ *** /// https://example.com/a?b=c#d
getHTTPResponse camelCase snake_case UPPER lower Mixed. 'quoted' "double" (paren) [bracket] {brace} `tick` ~tilde^ |pipe|
"""

TEXTS = [
    "", " ", "  ", "   a", "a   ", "\n", "\n\n", "a\n\nb", "\r\n", "\r\n\r\n  x", "\t\tx\t", " \n \n x", "x\n \ny",
    " \t \r\n \t ", "Hello world", "  Hello  World!  ", "I'm you're he'll we've I'd it's", "I'M YOU'RE HE'LL 'S x'Sy",
    "1234567890 12 345 1 22 333 4444 55555", "3.14159e-10 0x1F 1,000,000", "a1b22c333d4444", "٣٤٥ ½ Ⅻ ²³",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 family \U0001f44d\U0001f3fd", "你好，世界。中文 分词", "日本語テキスト カタカナ",
    "한국어 텍스트 입니다", "ภาษาไทยไม่มีช่องว่าง", "مرحبا بالعالم", "नमस्ते दुनिया", "e\u0301 a\u0308 n\u0303",
    "nb\u00a0sp \u00a0\u00a0x", "zw\u200bsp\u200b \u200b", "\ufeffbom", "nul\x00byte\x00", "\x01\x02\x7f\u0080",
    "<|im_start|>user\nhi<|im_end|>\n", "<|im_start|><|im_start|>", "<|im_start", "<tag>x</tag>", "<tag><|im_end|> <tag> y",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "                                  x", "\n\n\n\n\n\n\n\n\n\nx", "ababababababab",
    "!!!!!!!!!!!!", "=-=-=-=-=-", "def f(x):\n    return x+1\n\n\nclass A:\n\tpass\n", "a\u2028b\u2029c\x0bd\x0ce\x85f",
    "全角\u3000スペース\u3000", "https://example.com/path?q=1&b=2#frag", "C:\\path\\file", "$100 50% +1 <= >= ^ ~ | `code`",
    "'''quotes''' \"x\" \u201cy\u201d", "\U00020000\U0002a6df\ue000", "\u2581\u2581x\u2581y", "<0x0A> <0xFF>", "...", "a\rb\r",
    "<s></s><unk>", "The quick brown fox. It isn't 2024!\n",
]
CASED_TEXTS = ["getHTTPResponse camelCase UPPER lower Mixed", "Don'T stop 123456 I'm", "a/b//c\n\n/x", "  Two  Words\n", "世界。中文a1\r\n 12", "\tx  (y)"]
SPECIAL = ["<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tag>", "</tag>", "<tag>x"]


def train_bpe():
    # Words of any characters between spaces, so that merges reach across every border a pre-tokenizer could draw.
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\s?\S+|\s+"), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=1100, min_frequency=1, initial_alphabet=alphabet)
    # What looks like a special token must not become a token of its own by merging.
    plain = [text for text in TEXTS if "<" not in text]
    t.train_from_iterator([CORPUS, *plain, *CASED_TEXTS], trainer)
    model = json.loads(t.to_str())["model"]
    tokens = [None] * len(model["vocab"])
    for token, i in model["vocab"].items():
        tokens[i] = token
    merges = [" ".join(pair) for pair in model["merges"]]
    types = [1] * len(tokens) + [3] * len(SPECIAL) + [4] * len(USER_DEFINED)
    return {"tokens": tokens + SPECIAL + USER_DEFINED, "types": types, "merges": merges}


def train_spm():
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((CORPUS + "\n".join(TEXTS)).replace("\x00", "").split("\n")),
        model_writer=out, model_type="bpe", vocab_size=900, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, character_coverage=0.98, hard_vocab_limit=False, minloglevel=2,
    )
    sp = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    n = sp.vocab_size()
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1
    spm = {
        "tokens": [sp.id_to_piece(i) for i in range(n)],
        "scores": [sp.get_score(i) for i in range(n)],
        "types": [kind(i) for i in range(n)],
    }
    return spm, sp


def rwkv_vocab():
    words = [bytes([b]) for b in range(256)]
    plain = [t.encode() for t in TEXTS if "<" not in t]
    parts = {t[i : i + n] for t in plain for n in (2, 3, 5) for i in range(0, len(t), 7)}
    words += sorted(part for part in parts if len(part) > 1)
    return {"tokens": ["<s>"] + [repr(w)[2:-1] for w in words], "types": [3] + [1] * len(words)}


def llama_ids(model, vocab, texts, pre=None, **flags):
    """For each text: ids of the plain text, with control tokens read, and with BOS/EOS added."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/vocab.gguf"
        w = gguf.GGUFWriter(path, "llama")
        w.add_tokenizer_model(model)
        if pre:
            w.add_tokenizer_pre(pre)
        w.add_token_list([t.encode() for t in vocab["tokens"]])
        w.add_token_types(vocab["types"])
        if "scores" in vocab:
            w.add_token_scores(vocab["scores"])
        if "merges" in vocab:
            w.add_token_merges(vocab["merges"])
        for key, value in flags.items():
            getattr(w, "add_" + key)(value)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.close()
        m = llama_cpp.Llama(path, vocab_only=True, verbose=False)
        run = lambda t, **kw: m.tokenize(t.encode(), **kw)
        return [
            [run(t, add_bos=False, special=False), run(t, add_bos=False, special=True), run(t, add_bos=True, special=False)]
            for t in texts
        ]


def main():
    bpe, (spm, sp), rwkv = train_bpe(), train_spm(), rwkv_vocab()
    bos, eos = (bpe["tokens"].index(s) for s in SPECIAL)
    named = dict(bos_token_id=bos, eos_token_id=eos)
    data = {"texts": TEXTS, "cased_texts": CASED_TEXTS, "bpe": bpe, "spm": spm, "rwkv": rwkv, "bpe_ids": {}, "spm_ids": {}}
    for pre in PRE:
        data["bpe_ids"][pre] = llama_ids("gpt2", bpe, TEXTS, pre, **named)
    for pre in CASED:
        data["bpe_ids"][pre] = llama_ids("gpt2", bpe, CASED_TEXTS, pre, **named)
    for prefix in (True, False):
        flags = dict(bos_token_id=1, eos_token_id=2, unk_token_id=0, add_space_prefix=prefix, add_eos_token=prefix)
        data["spm_ids"][str(prefix).lower()] = llama_ids("llama", spm, TEXTS, "default", **flags)
    for text, (ids, _, _) in zip(TEXTS, data["spm_ids"]["true"]):
        if text and "\x00" not in text and not any(s in text for s in ("<s>", "<0x")):
            assert sp.encode(text) == ids, (text, sp.encode(text), ids)
    data["rwkv_ids"] = llama_ids("rwkv", rwkv, TEXTS)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(data, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
