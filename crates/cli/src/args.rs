//! Flags that several commands share, and how their values are read.

use std::num::{IntErrorKind, NonZeroUsize, ParseIntError};
use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use exotherm_engine::Sampling;
use exotherm_kernels::KvType;
use exotherm_kernels::gpu::{GpuInfo, GpuKind};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_tensor::DType;

use crate::machine;
use crate::output::note;

/// The longest context when none is asked for. More is reserved only as it is used, and a recurrent state does not grow at
/// all, but an answer that does not end is cut off here.
pub const DEFAULT_CTX: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendKind {
    Cpu,
    Gpu,
    Reference,
}

impl BackendKind {
    pub fn name(self) -> &'static str {
        match self {
            BackendKind::Cpu => "cpu",
            BackendKind::Gpu => "gpu",
            BackendKind::Reference => "reference",
        }
    }

    /// Of a name that is known; `auto` is a real GPU where there is one, which is said.
    fn named(name: &str) -> BackendKind {
        match name {
            "gpu" => BackendKind::Gpu,
            "reference" => BackendKind::Reference,
            "auto" if GpuInfo::all().iter().any(|gpu| gpu.kind() != GpuKind::Software) => BackendKind::Gpu,
            "auto" => {
                note("note: there is no GPU but in software, so the cpu backend computes");
                BackendKind::Cpu
            }
            _ => BackendKind::Cpu,
        }
    }
}

fn backends() -> impl TypedValueParser<Value = BackendKind> {
    let named = |name: &'static str, help: &'static str| PossibleValue::new(name).help(help);
    let parser = PossibleValuesParser::new([
        named("cpu", "All cores, vector instructions"),
        named("gpu", "The first GPU that `exotherm devices` lists"),
        named("auto", "A GPU unless there is none but in software, else the cpu; it says which"),
        named("reference", "Scalar and slow, the measure for the others"),
    ]);
    parser.map(|name| BackendKind::named(&name))
}

/// Where to compute.
#[derive(Args, Clone, Debug)]
pub struct ComputeArgs {
    /// What computes
    #[arg(long, value_name = "BACKEND", default_value = "cpu", value_parser = backends())]
    pub backend: BackendKind,
    #[command(flatten)]
    pub threads: ThreadArgs,
    #[command(flatten)]
    pub isa: IsaArg,
}

impl ComputeArgs {
    /// Threads that compute.
    pub fn threads(&self) -> usize {
        match self.backend {
            BackendKind::Cpu => self.threads.count(),
            BackendKind::Gpu => 1,
            BackendKind::Reference => ReferenceBackend::threads(),
        }
    }

    /// The level that the backend computes at; nothing for one that has no choice of instructions.
    pub fn isa_of(&self, level: &'static str) -> Option<&'static str> {
        (self.backend == BackendKind::Cpu).then_some(level)
    }

    /// Says so where --threads changes nothing.
    pub fn note_if_unused(&self) {
        let why = match self.backend {
            BackendKind::Cpu => return,
            BackendKind::Gpu => "the GPU has threads of its own",
            BackendKind::Reference => "the reference backend shares its work out by itself",
        };
        if self.threads.threads.is_some() {
            note(format_args!("note: --threads changes nothing: {why}"));
        }
    }
}

#[derive(Args, Clone, Debug)]
pub struct ThreadArgs {
    /// Threads that compute [default: the physical cores that may be used]
    #[arg(long, short = 't', value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
}

impl ThreadArgs {
    pub fn count(&self) -> usize {
        self.threads.unwrap_or_else(machine::physical_cores)
    }
}

/// The names of all instruction levels, whether this machine has them or not.
const LEVELS: [&str; 6] = ["scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "neon"];

#[derive(Args, Clone, Debug)]
pub struct IsaArg {
    /// Instructions that the cpu backend computes with [default: the best that this machine has]
    #[arg(long, value_name = "LEVEL", value_parser = PossibleValuesParser::new(LEVELS))]
    pub isa: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub struct QuantizeArg {
    /// Store float weight matrices in this type while loading (f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k,
    /// q3_k, q4_k, q5_k, q6_k)
    #[arg(long, value_name = "TYPE", value_parser = dtype, hide_possible_values = true)]
    pub quantize: Option<DType>,
}

/// How tokens are chosen.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Divides the logits: less is soberer, 0 always takes the likeliest token
    #[arg(long, value_name = "X", default_value_t = 0.8)]
    pub temperature: f32,
    /// Choose among the K likeliest tokens; 0: among all
    #[arg(long, value_name = "K", default_value_t = 40, value_parser = whole::<usize>)]
    pub top_k: usize,
    /// Choose among the likeliest tokens that hold this share of the probability; 1: among all
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f32,
    /// Choose among tokens at least P times as likely as the likeliest; 0: among all
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub min_p: f32,
    /// Makes tokens of the prompt and the answer less likely; 1: off
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// Taken from the logits of tokens that the answer has; 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub presence_penalty: f32,
    /// Taken from the logits of tokens for each time that the answer has them; 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub frequency_penalty: f32,
    /// Equal seeds give equal answers [default: a new one each time; --json tells it]
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed.unwrap_or_else(new_seed),
            ..Sampling::default()
        }
    }
}

/// A number that no earlier run had, small enough to be typed again.
fn new_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |d| d.as_nanos() as u64);
    (nanos ^ (nanos >> 32) ^ (u64::from(std::process::id()) << 16)) & 0xffff_ffff
}

/// Numbers with commas between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers<T>(pub Vec<T>);

impl<T: FromStr<Err = ParseIntError>> FromStr for Numbers<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Numbers<T>, String> {
        let number = |item: &str| {
            whole(item.trim()).map_err(|why| format!("{item:?}: {why}; write numbers with commas: 1,2,3"))
        };
        text.split(',').map(number).collect::<Result<_, _>>().map(Numbers)
    }
}

pub fn kv_types() -> impl TypedValueParser<Value = KvType> {
    let parser = PossibleValuesParser::new([KvType::F32.name(), KvType::F16.name()]);
    parser.map(|name| if name == KvType::F32.name() { KvType::F32 } else { KvType::F16 })
}

pub fn dtype(name: &str) -> Result<DType, String> {
    DType::from_name(name).ok_or_else(|| {
        let known: Vec<&str> = DType::all().map(DType::name).collect();
        format!("there is no such type; there are {}", known.join(", "))
    })
}

fn threads(text: &str) -> Result<usize, String> {
    const MOST: usize = 1024;
    match text.parse() {
        Ok(n @ 1..=MOST) => Ok(n),
        Ok(0) => Err("at least one thread is needed".into()),
        _ => Err(format!("a whole number from 1 to {MOST} is expected")),
    }
}

/// How long something is measured.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if (0.01..=600.0).contains(&n) => Ok(n),
        _ => Err("a number of seconds from 0.01 to 600 is expected".into()),
    }
}

/// A size in bytes, or with K, M, G or T in steps of 1024.
pub fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_uppercase();
    let power = ["", "K", "M", "G", "T"].iter().position(|known| unit.trim_end_matches(['B', 'I']) == *known);
    let number: Option<f64> = digits.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0);
    match (number, power) {
        (Some(number), Some(power)) => Ok((number * 1024f64.powi(power as i32)) as usize),
        _ => Err("a size is expected, such as 800M or 6G".into()),
    }
}

fn number<T: FromStr<Err = ParseIntError>>(text: &str, range: &str) -> Result<T, String> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => "the number is too large".into(),
        _ => format!("a whole number {range} is expected"),
    })
}

/// A count that may be 0.
pub fn whole<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    number(text, "from 0 on")
}

/// A count of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    number(text, "of at least 1").map(NonZeroUsize::get)
}

/// Seconds, in a range that the error names.
pub fn whole_seconds(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> + Clone {
    move |text| match text.parse() {
        Ok(n) if range.contains(&n) => Ok(n),
        _ => Err(format!("a whole number from {} to {} is expected", range.start(), range.end())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers() {
        assert_eq!("1, 2,3".parse(), Ok(Numbers(vec![1u32, 2, 3])));
        for wrong in ["", "1,,2", "1,x", "-1", "4294967296", "1,"] {
            assert!(wrong.parse::<Numbers<u32>>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn counts_have_ranges() {
        assert_eq!((whole::<u64>("0"), positive("1")), (Ok(0), Ok(1)));
        let wrong = |text| (whole::<usize>(text).unwrap_err(), positive(text).unwrap_err());
        for text in ["-1", "x", "", "1.5"] {
            let expected = ["from 0 on", "of at least 1"].map(|r| format!("a whole number {r} is expected"));
            assert_eq!(wrong(text), expected.into(), "{text:?}");
        }
        assert!(positive("0").unwrap_err().contains("at least 1"));
        let (many, most) = (wrong("99999999999999999999"), whole_seconds(0..=7)("8"));
        assert!(many.0.contains("too large") && many.1.contains("too large"), "{many:?}");
        assert_eq!(most, Err("a whole number from 0 to 7 is expected".into()));
    }

    #[test]
    fn sizes_have_units() {
        let sizes = [("7", 7), ("2K", 2048), ("1.5m", 3 << 19), ("6GiB", 6 << 30), ("1TB", 1 << 40)];
        sizes.iter().for_each(|(text, size)| assert_eq!(bytes(text), Ok(*size), "{text}"));
        let wrong = ["", "G", "-1", "0", "1X", "inf", "nan", "1 G"];
        wrong.iter().for_each(|wrong| assert!(bytes(wrong).is_err(), "{wrong:?}"));
    }

    #[test]
    fn every_type_is_in_the_help_of_quantize() {
        let command = QuantizeArg::augment_args(clap::Command::new("x"));
        let help = command.get_arguments().find(|a| a.get_id() == "quantize").and_then(|a| a.get_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        DType::all().for_each(|dtype| assert!(help.contains(dtype.name()), "{dtype}"));
    }
}
