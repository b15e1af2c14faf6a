//! The pre-tokenizers that `tokenizer.ggml.pre` names.
//!
//! Patterns apply one after the other, each within the words that the one before it left. Where a published pattern
//! says `(?i:'s|…)`, the letters are spelled out: case folding would let U+017F and U+212A stand for s and k.

use crate::TokenizerError;
use crate::split::Splitter;

const CONTRACTIONS: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const CASED_WORDS: [&str; 2] = [
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
];
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// How one family cuts text and merges it.
pub(crate) struct PreTokenizer {
    pub(crate) splitters: Vec<Splitter>,
    /// A word that is a token as a whole is taken as it is, whatever the merges would make of it.
    pub(crate) ignore_merges: bool,
    /// Begins with BOS unless the file says otherwise.
    pub(crate) add_bos: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Default,
    Gpt2,
    Falcon,
    SmolLm,
    Llama3,
    ChatGlm,
    Qwen2,
    Qwen35,
    DeepSeekCoder,
    DeepSeek3,
    Tekken,
    Gpt4o,
}

/// Every name of `tokenizer.ggml.pre` that is known, and what it stands for.
const NAMES: &[(&str, Family)] = &[
    ("default", Family::Default),
    ("gpt-2", Family::Gpt2),
    ("phi-2", Family::Gpt2),
    ("mpt", Family::Gpt2),
    ("olmo", Family::Gpt2),
    ("jais", Family::Gpt2),
    ("gigachat", Family::Gpt2),
    ("exaone4", Family::Gpt2),
    ("trillion", Family::Gpt2),
    ("falcon", Family::Falcon),
    ("smollm", Family::SmolLm),
    ("starcoder", Family::SmolLm),
    ("refact", Family::SmolLm),
    ("command-r", Family::SmolLm),
    ("codeshell", Family::SmolLm),
    ("exaone", Family::SmolLm),
    ("minerva-7b", Family::SmolLm),
    ("llama-bpe", Family::Llama3),
    ("llama3", Family::Llama3),
    ("llama-v3", Family::Llama3),
    ("falcon3", Family::Llama3),
    ("falcon-h1", Family::Llama3),
    ("pixtral", Family::Llama3),
    ("lfm2", Family::Llama3),
    ("dbrx", Family::ChatGlm),
    ("smaug-bpe", Family::ChatGlm),
    ("glm4", Family::ChatGlm),
    ("chatglm-bpe", Family::ChatGlm),
    ("qwen2", Family::Qwen2),
    ("deepseek-r1-qwen", Family::Qwen2),
    ("megrez", Family::Qwen2),
    ("stablelm2", Family::Qwen2),
    ("hunyuan", Family::Qwen2),
    ("qwen35", Family::Qwen35),
    ("deepseek-coder", Family::DeepSeekCoder),
    ("deepseek-v3", Family::DeepSeek3),
    ("hunyuan-dense", Family::DeepSeek3),
    ("tekken", Family::Tekken),
    ("gpt-4o", Family::Gpt4o),
    ("llama4", Family::Gpt4o),
];

/// The pre-tokenizer of that name; without a name, the default one.
pub(crate) fn by_name(name: Option<&str>) -> Result<PreTokenizer, TokenizerError> {
    let name = name.unwrap_or("default");
    let family =
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, family)| *family).ok_or_else(|| {
            let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
            TokenizerError::UnknownPreTokenizer { name: name.to_owned(), known: known.join(", ") }
        })?;
    let patterns = patterns(family);
    Ok(PreTokenizer {
        splitters: patterns.iter().map(|p| Splitter::new(p)).collect::<Result<_, _>>()?,
        ignore_merges: matches!(family, Family::Llama3 | Family::Tekken),
        add_bos: matches!(family, Family::Llama3 | Family::Tekken),
    })
}

fn patterns(family: Family) -> Vec<String> {
    let gpt2 = GPT2.to_owned();
    match family {
        Family::Default => {
            vec![r"[\p{P}\$\+<=>\^~\|]+".into(), gpt2, r"\p{N}+".into(), "[0-9][0-9][0-9]".into()]
        }
        Family::Gpt2 => vec![gpt2],
        Family::Falcon => vec![r"[\p{P}\$\+<=>\^~\|`]+".into(), gpt2, "[0-9][0-9][0-9]".into()],
        Family::SmolLm => vec![r"\p{N}".into(), gpt2],
        Family::Llama3 | Family::ChatGlm => vec![words(r"\p{L}+", "", r"\p{N}{1,3}")],
        Family::Qwen2 => vec![words(r"\p{L}+", "", r"\p{N}")],
        Family::Qwen35 => vec![words(r"[\p{L}\p{M}]+", r"\p{M}", r"\p{N}")],
        Family::DeepSeekCoder => vec![
            r"[\r\n]".into(),
            r"\s?\p{L}+".into(),
            r"\s?\p{P}+".into(),
            "[一-龥ࠀ-一가-\u{d7ff}]+".into(),
            r"\p{N}".into(),
        ],
        Family::DeepSeek3 => {
            vec![r"\p{N}{1,3}".into(), "[一-龥\u{3040}-ゟ゠-ヿ]+".into(), DEEPSEEK3.into()]
        }
        Family::Tekken => vec![cased("", r"\p{N}")],
        Family::Gpt4o => vec![cased(&format!("{CONTRACTIONS}?"), r"\p{N}{1,3}")],
    }
}

/// Contractions, words with one leading sign, numbers, runs of signs with the newlines after them, white space.
fn words(word: &str, mark: &str, number: &str) -> String {
    format!(
        r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{word}|{number}| ?[^\s\p{{L}}{mark}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// Words that end where a capital follows a small letter.
fn cased(contraction: &str, number: &str) -> String {
    let [a, b] = CASED_WORDS;
    format!(
        r"{a}{contraction}|{b}{contraction}|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(name: &str, text: &str) -> Vec<String> {
        let pre = by_name(Some(name)).expect(name);
        let whole = 0..text.len();
        let words = pre
            .splitters
            .iter()
            .try_fold(vec![whole], |words, splitter| splitter.refine(text, &words))
            .expect("no pattern gives up");
        words.into_iter().map(|word| text[word].to_owned()).collect()
    }

    #[test]
    fn every_listed_name_compiles_and_loses_nothing() {
        let text = "Hello  World's 12345 don'T\r\n\r\n  x\t\t!?=+$ नमस्ते 你好 ١٢٣ \u{a0}\u{200b} e\u{301} `a` ~^|\n \n";
        for (name, _) in NAMES {
            assert_eq!(cut(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn white_space_gives_its_last_character_to_the_next_word() {
        assert_eq!(cut("gpt-2", "a   b"), ["a", "  ", " b"]);
        assert_eq!(cut("gpt-2", "a\n\nb  "), ["a", "\n", "\n", "b", "  "]);
        assert_eq!(cut("llama-bpe", "a \n\n  b"), ["a", " \n\n", " ", " b"]);
    }

    #[test]
    fn families_differ_in_digits() {
        assert_eq!(cut("gpt-2", "12345"), ["12345"]);
        assert_eq!(cut("smollm", "12345"), ["1", "2", "3", "4", "5"]);
        assert_eq!(cut("llama-bpe", "12345"), ["123", "45"]);
        assert_eq!(cut("qwen2", "123"), ["1", "2", "3"]);
        assert_eq!(cut("falcon", "12345"), ["123", "45"]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = by_name(Some("marsian")).err().expect("unknown").to_string();
        assert!(error.contains("marsian") && error.contains("llama-bpe"), "{error}");
    }

    #[test]
    fn a_long_run_of_spaces_takes_linear_time() {
        let text = format!("{}x", " ".repeat(2_000_000));
        assert_eq!(cut("llama-bpe", &text).len(), 2);
    }
}
