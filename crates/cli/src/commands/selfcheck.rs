//! `exotherm selfcheck`: is what this machine computes right?

use anyhow::{Result, ensure};
use exotherm_engine::selfcheck::{Divergence, Missed, Report, Tolerance, compare_text, selfcheck};
use exotherm_engine::{EngineConfig, Evaluator};
use exotherm_kernels::reference::{ReferenceBackend, ReferenceWith};
use exotherm_kernels::rounding::Rounding;
use exotherm_kernels::{Activations, Backend, KvType, Program};
use exotherm_models::Model;
use exotherm_tokenizer::{Specials, Tokenizer, TokenizerError};
use exotherm_weights::store::DEFAULT_MODEL;
use serde_json::{Value, json};

use crate::Context;
use crate::args::{BackendKind, ComputeArgs, QuantizeArg, kv_types, positive};
use crate::model;
use crate::output::{self, UsageError, note};

/// Check a backend against the reference on this machine
///
/// Two questions are asked. Are the operations computed right? A short text is run, op by op and in distribution, and
/// both backends write on greedily, which the two hashes stand for; if the backend rounds activations for this model's
/// weights (to integers of 8 bits, or to BF16), so does the reference here. And what comes of it? The distributions at
/// every position of a longer text are compared with the exact reference. Exit code 1 if a bound is missed.
///
/// The reference is slow: a core takes some minutes for every 100 million parameters. --tokens makes the text shorter;
/// below 3,000 tokens the bounds are wider by three standard deviations of what chance does to so few.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A known name, a path or hf:org/repo[/file]
    #[arg(value_name = "MODEL", default_value = DEFAULT_MODEL)]
    model: String,
    /// Tokens of the longer text, in windows of at most 1,024, each from an empty context
    #[arg(long, value_name = "N", default_value_t = 3072, value_parser = positive)]
    tokens: usize,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = kv_types())]
    kv_type: KvType,
    #[command(flatten)]
    quantize: QuantizeArg,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  exotherm selfcheck
  exotherm selfcheck large.gguf --tokens 256
  exotherm selfcheck smollm2 --backend gpu
  exotherm selfcheck ./folder --kv-type f16 --quantize q8_0 --json";

/// Plain prose with names, numbers, code and other scripts in it, so that many kinds of tokens come up.
const TEXT: &str = "\
The lighthouse at the end of the pier was built in 1874 and has been repaired four times since. On clear evenings its \
keeper, a retired engineer called Marta Okafor, writes down the wind, the tide and the colour of the sky: \"NW 5, 1.2 m, \
copper\". Nobody asked her to; she simply likes to know. When the harbour office replaced the lamp, they sent a short \
program along, `for i in range(3): blink(i * 0.5)`, and a note in two languages (Vorsicht, heiß! / Attention, c'est \
chaud). She pinned the note to the door, under the photograph of a ship named Заря, and went back to counting waves.";
/// What follows it in the longer text: Jane Austen, Pride and Prejudice, from the end of chapter 2.
const MORE_TEXT: &str = include_str!("../data/ball.txt");
/// Tokens of the short text at most, which the operations are compared on.
const SHORT: usize = 160;
/// Tokens that each writes on.
const GENERATED: usize = 24;
/// The longer text is run in windows of so many tokens, which every model's context but the smallest has room for.
const WINDOW: usize = 1024;
/// Steps of more rows than a step of the cpu kernels' tiles, and several of them.
const CHUNK: usize = 64;

/// Positions from which on shares and means over them are held to their bounds as they stand.
const MANY: usize = 3000;

/// How far a backend's operations may be from those of the reference that rounds activations as it does, over so many
/// positions.
///
/// With activations in f32 the two differ only in the order and width of sums: f32 sums over a few thousand products are
/// good to about 1e-5 of the largest value. Where keys and values are f16, one may round the other way where the two
/// differ in the last bit, half a unit in the 11th bit, 5e-4: so it is for the ops that write or read them, and no others.
///
/// With activations of 8 bits, a value between two integers goes the other way where the two differ in the last bit: a
/// step of 1/127 of a block's largest value in one of many products. Each such step moves others in the layers after it,
/// until the two are as far from each other as from what is exact. So the operations, which are asked about the same
/// values, are held to the rounding of a few values, and the distributions to twice what rounding may cost.
fn operations_tolerance(kv_type: KvType, rounding: Rounding, positions: usize) -> Tolerance {
    let op_error = match rounding {
        // SmolLM2 in F16 was 3.9e-6 off, a golden model 1.7e-6; sums of many more products are less exact.
        Rounding::None => 1e-4,
        // Gemma 3 270M was 2.5e-3 off, SmolLM2 8.6e-4 to 1.5e-3. A step of BF16 is no larger than one of 8 bits.
        Rounding::Bf16 | Rounding::Int8 => 6e-3,
        // A step of F16 is an eighth of one of BF16.
        Rounding::F16 => 1e-3,
    };
    let cache_error = match kv_type {
        KvType::F32 => op_error,
        KvType::F16 => 1e-2,
    };
    match cost(rounding) {
        None => Tolerance { op_error, cache_error, ..exact_tolerance(kv_type, positions) },
        Some((mean_kl, _)) => {
            let top1 = top1_of(0.9, positions, SHORT);
            let mean_kl = mean_kl_of(2.0 * mean_kl, positions, SHORT);
            Tolerance { op_error, cache_error, kl: 0.5, mean_kl, top1, flip: 1.0 }
        }
    }
}

/// What rounding activations may cost: the mean divergence, in nats, and how often the likeliest token stays the same.
/// SmolLM2 in BF16 moved by 7.8e-5 and kept 99.4 %.
fn cost(rounding: Rounding) -> Option<(f64, f64)> {
    match rounding {
        Rounding::None => None,
        // Divergence grows with the square of the steps.
        Rounding::F16 => Some((2e-5, 0.995)),
        Rounding::Bf16 => Some((4e-4, 0.985)),
        Rounding::Int8 => Some((4e-3, 0.96)),
    }
}

/// How far a backend may be from the exact reference in what it makes of a text of so many positions.
fn text_tolerance(kv_type: KvType, rounding: Rounding, positions: usize) -> Tolerance {
    let exact = exact_tolerance(kv_type, positions);
    match cost(rounding) {
        None => exact,
        Some((mean_kl, top1)) => {
            let mean_kl = mean_kl_of(mean_kl, positions, MANY);
            // Of one position: a wrong one is nats away.
            Tolerance { kl: 0.5, mean_kl, top1: top1_of(top1, positions, MANY), flip: f64::INFINITY, ..exact }
        }
    }
}

fn exact_tolerance(kv_type: KvType, positions: usize) -> Tolerance {
    let (kl, mean_kl, flip) = match kv_type {
        KvType::F32 => (1e-5, 1e-6, 1e-2),
        KvType::F16 => (1e-3, 1e-4, 5e-2),
    };
    let none = f64::INFINITY;
    let top1 = top1_of(0.999, positions, MANY);
    Tolerance { op_error: none, cache_error: none, kl, mean_kl, top1, flip }
}

/// The least share of equal likeliest tokens over `positions`: the bound that holds for `enough` of them, less three
/// standard deviations of the count where there are fewer; one position may always differ.
fn top1_of(bound: f64, positions: usize, enough: usize) -> f64 {
    if positions >= enough {
        return bound;
    }
    let n = positions as f64;
    let deviation = (bound * (1.0 - bound) / n).sqrt();
    (bound - 3.0 * deviation).min((n - 1.0) / n).max(0.0)
}

/// The largest mean divergence over `positions`, in the same way: where activations are rounded, the divergence of a
/// position deviates from the mean by about as much as the mean is (1.05 of it for SmolLM2).
fn mean_kl_of(bound: f64, positions: usize, enough: usize) -> f64 {
    if positions >= enough { bound } else { bound * (1.0 + 3.0 / (positions as f64).sqrt()) }
}

/// The two comparisons.
struct Outcome {
    /// What the backend does to activations that meet this model's weights.
    activations: Activations,
    operations: Report,
    text: Report,
    window: usize,
}

impl Outcome {
    fn agrees(&self) -> bool {
        self.operations.agrees() && self.text.agrees()
    }

    /// Which bounds were missed by which figures, in words.
    fn missed(&self) -> String {
        let of = |what: &'static str, report: &Report| -> Vec<String> {
            report.missed().iter().map(|missed| format!("{what}: {}", in_words(missed))).collect()
        };
        [of("computed right", &self.operations), of("what comes of it", &self.text)].concat().join("; ")
    }

    /// What the operations are held to.
    fn against(&self) -> &'static str {
        ReferenceWith(self.activations).name()
    }
}

pub fn run(args: &Args, cx: &Context) -> Result<()> {
    if args.compute.backend == BackendKind::Reference {
        let why = "the reference is what the others are checked against: give --backend cpu or gpu";
        return Err(UsageError(why.into()).into());
    }
    let mut checkpoint = model::open(cx, &args.model)?;
    let tokenizer = model::tokenizer(&checkpoint)?;
    let model = model::record(&mut checkpoint, args.quantize.quantize)?;
    checkpoint.give_back();
    drop(checkpoint);
    let outcome = compare(args, &model, tokenizer.as_ref())?;
    match args.json {
        true => output::json(&as_json(args, &outcome))?,
        false => output::text(as_text(args, &outcome))?,
    }
    if !outcome.agrees() {
        anyhow::bail!(
            "{} and reference disagree on {} ({}); what it computes here is not to be trusted",
            args.compute.backend.name(),
            args.model,
            outcome.missed()
        );
    }
    Ok(())
}

fn compare(args: &Args, model: &Model, tokenizer: Option<&Tokenizer>) -> Result<Outcome> {
    let program = &model.program;
    let tried = model::backend(&args.compute)?;
    let (activations, rounding) = activations(&*tried, program);
    let context = model::context(program, &model.info, None);
    let generated = GENERATED.min(context / 2);
    let short = tokens(tokenizer, program, TEXT, (context - generated).min(SHORT))?;
    let long = tokens(tokenizer, program, &format!("{TEXT}\n\n{MORE_TEXT}"), args.tokens)?;
    if long.len() < args.tokens {
        note(format_args!("note: the text has {} tokens, --tokens {} is more", long.len(), args.tokens));
    }
    let window = WINDOW.min(context).min(long.len());
    let config = EngineConfig {
        chunk: CHUNK,
        logit_rows: model::logit_rows(program).min(CHUNK),
        kv_type: args.kv_type,
        ..EngineConfig::new(window.max(short.len() + generated))
    };
    let mut tried = Evaluator::new(program, &*tried, &config)?;
    let mut reference = Evaluator::new(program, &ReferenceWith(activations), &config)?;
    let bar = output::steps("tokens", short.len() + generated + long.len());
    let tolerance = operations_tolerance(args.kv_type, rounding, short.len());
    let operations = selfcheck(&mut reference, &mut tried, &short, generated, tolerance, |done, _| {
        bar.set_position(done as u64);
    })?;
    if activations != Activations::Exact {
        reference = Evaluator::new(program, &ReferenceBackend, &config)?;
    }
    let tolerance = text_tolerance(args.kv_type, rounding, long.len());
    let text = compare_text(&mut reference, &mut tried, &long, window, tolerance, |done, _| {
        bar.set_position((short.len() + generated + done) as u64);
    })?;
    bar.finish_and_clear();
    Ok(Outcome { activations, operations, text, window })
}

/// How the backend rounds activations of this program, and the coarsest of it.
fn activations(backend: &dyn Backend, program: &Program) -> (Activations, Rounding) {
    let segments = || program.matrices().iter().flat_map(|m| &m.segments);
    let rounds_to = |to| segments().any(|s| backend.activations().rounding(s.dtype()) == to);
    if rounds_to(Rounding::F16) {
        return (Activations::RoundedToF16, Rounding::F16);
    }
    match (rounds_to(Rounding::Int8), rounds_to(Rounding::Bf16)) {
        (true, true) => (Activations::RoundedToBf16, Rounding::Int8),
        (false, true) => (Activations::RoundedToBf16, Rounding::Bf16),
        (true, false) => (Activations::Rounded, Rounding::Int8),
        (false, false) => (Activations::Exact, Rounding::None),
    }
}

/// The first tokens of the text; where there is no tokenizer, or one for a language that has not got its characters, ids
/// spread over the vocabulary.
fn tokens(tokenizer: Option<&Tokenizer>, program: &Program, text: &str, most: usize) -> Result<Vec<u32>> {
    let most = most.max(1);
    let mut tokens = match tokenizer.map(|tokenizer| tokenizer.encode(text, Specials::ADD)) {
        Some(Ok(tokens)) => tokens,
        Some(Err(TokenizerError::Unencodable { .. })) | None => {
            ensure!(model::has_room_for(most), "no room for {most} tokens; a smaller --tokens needs less");
            model::spread_ids(program.vocab(), most)
        }
        Some(Err(error)) => return Err(error.into()),
    };
    tokens.truncate(most);
    Ok(tokens)
}

fn as_text(args: &Args, outcome: &Outcome) -> String {
    let Outcome { operations, text, .. } = outcome;
    let op = |d: &Divergence| {
        format!("{:.1e}  (op {} {}, buffer {}, position {})", d.error, d.op, d.name, d.buffer, d.position)
    };
    let backend = args.compute.backend.name();
    let worst = operations.worst_op.as_ref().map_or("none".to_string(), op);
    let first = operations.first_divergence.as_ref().map_or("none".to_string(), op);
    let mut rows = rows(operations);
    let (error, bound) = operations.worst_op.map_or((0.0, f64::INFINITY), |d| (d.error, d.bound));
    rows.push(["worst op".into(), format!("{error:.1e}"), most(bound)].to_vec());
    format!(
        "{}: {backend} against reference, kv {}\n\n\
         Computed right? {} tokens against {}\n{}\n\n\
         worst op         {worst}\nfirst divergence {first}\nhash reference   {}\n{:<16} {}\n\n\
         What comes of it? {} tokens in windows of {} against reference\n{}\n\n{}",
        args.model,
        args.kv_type.name(),
        operations.positions,
        outcome.against(),
        output::table(&rows),
        operations.reference_hash(),
        format!("hash {backend}"),
        operations.hash(),
        text.positions,
        outcome.window,
        output::table(&self::rows(text)),
        match outcome.agrees() {
            true => "they agree".into(),
            false => format!("THEY DISAGREE: {}", outcome.missed()),
        },
    )
}

/// A bound that was missed.
fn in_words(missed: &Missed) -> String {
    let Missed { what, measured, bound } = *missed;
    match what {
        // Of the two shares as many digits that they differ.
        "top-1 agreement" => format!("{what} {:.2} %, not >= {:.2} %", 100.0 * measured, 100.0 * bound),
        _ => format!("{what} {measured:.1e}, not <= {bound:.0e}"),
    }
}

/// What both comparisons have measured and are allowed.
fn rows(report: &Report) -> Vec<Vec<String>> {
    let Report { tolerance, positions, agreements, .. } = report;
    let agreement = format!("{agreements}/{positions}, {:.2} %", 100.0 * report.top1_agreement());
    let number = |n: f64| format!("{n:.1e}");
    let rows = [
        ["".into(), "measured".into(), "allowed".into()],
        ["top-1 agreement".into(), agreement, format!(">= {:.2} %", 100.0 * tolerance.top1)],
        ["mean KL".into(), number(report.mean_kl), most(tolerance.mean_kl)],
        ["max KL".into(), number(report.max_kl), most(tolerance.kl)],
        ["worst flip".into(), number(report.worst_flip), most(tolerance.flip)],
    ];
    rows.map(|row| row.to_vec()).to_vec()
}

/// A bound from above, if it is one.
fn most(bound: f64) -> String {
    if bound.is_finite() { format!("<= {bound:.0e}") } else { String::new() }
}

fn as_json(args: &Args, outcome: &Outcome) -> Value {
    let Outcome { operations, text, .. } = outcome;
    // What is infinite, because something was no number, is null.
    let op = |d: Option<Divergence>| {
        d.map(|d| {
            json!({
                "op": d.op,
                "name": d.name,
                "buffer": d.buffer,
                "position": d.position,
                "error": d.error,
                "bound": d.bound,
            })
        })
    };
    json!({
        "model": args.model,
        "backend": args.compute.backend.name(),
        "kv_type": args.kv_type.name(),
        "agrees": outcome.agrees(),
        "rounds_activations": outcome.activations != Activations::Exact,
        "operations": comparison(operations, outcome.against()),
        "worst_op": op(operations.worst_op),
        "first_divergence": op(operations.first_divergence),
        "reference_hash": operations.reference_hash().to_string(),
        "hash": operations.hash().to_string(),
        "reference_output": operations.reference_output,
        "output": operations.output,
        "window": outcome.window,
        "text": comparison(text, ReferenceBackend.name()),
    })
}

fn comparison(report: &Report, against: &str) -> Value {
    let tolerance = &report.tolerance;
    let missed = |m: &Missed| json!({ "bound": m.what, "measured": m.measured, "allowed": m.bound });
    json!({
        "against": against,
        "agrees": report.agrees(),
        "missed": report.missed().iter().map(missed).collect::<Vec<_>>(),
        "positions": report.positions,
        "top1_agreement": report.top1_agreement(),
        "mean_kl": report.mean_kl,
        "max_kl": report.max_kl,
        "worst_flip": report.worst_flip,
        // null: not bounded.
        "tolerance": {
            "op_error": tolerance.op_error,
            "cache_error": tolerance.cache_error,
            "kl": tolerance.kl,
            "mean_kl": tolerance.mean_kl,
            "top1": tolerance.top1,
            "flip": tolerance.flip,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_those_that_are_promised() {
        for kv_type in [KvType::F32, KvType::F16] {
            let exact = text_tolerance(kv_type, Rounding::None, MANY);
            assert!(exact.top1 == 0.999 && exact.mean_kl <= 1e-4 && exact.kl <= 1e-3, "{exact:?}");
            let rounded = text_tolerance(kv_type, Rounding::Int8, 3072);
            assert_eq!((rounded.top1, rounded.mean_kl), (0.96, 4e-3));
            let finer = text_tolerance(kv_type, Rounding::Bf16, MANY);
            assert!(finer.top1 > rounded.top1 && finer.mean_kl < rounded.mean_kl, "{finer:?}");
            for (rounding, op_error) in
                [(Rounding::None, 1e-4), (Rounding::Bf16, 6e-3), (Rounding::Int8, 6e-3)]
            {
                let operations = operations_tolerance(kv_type, rounding, SHORT);
                assert_eq!(operations.op_error, op_error);
                let cache = if kv_type == KvType::F16 { 1e-2 } else { op_error };
                assert!(operations.cache_error == cache && operations.kl.is_finite(), "{operations:?}");
            }
        }
    }

    /// With few positions a right machine is not condemned for what chance does, and a wrong one still is.
    #[test]
    fn the_share_that_must_be_equal_falls_where_positions_are_few() {
        let text = |rounding, positions| text_tolerance(KvType::F32, rounding, positions).top1;
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(near(text(Rounding::Int8, 64), 0.96 - 3.0 * (0.96f64 * 0.04 / 64.0).sqrt()));
        // What SmolLM2 has on a right machine.
        for (positions, share) in [(64, 0.9375), (128, 0.914), (160, 0.925), (512, 0.941)] {
            assert!((0.88..share).contains(&text(Rounding::Int8, positions)), "{positions}");
        }
        for rounding in [Rounding::None, Rounding::Bf16, Rounding::Int8] {
            let bounds = [1, 2, 16, 64, 256, 1024, 2999, MANY, 5000].map(|n| text(rounding, n));
            assert!(bounds.is_sorted() && bounds[0] == 0.0 && bounds[7] == bounds[8], "{bounds:?}");
        }
        assert!(text(Rounding::None, 64) < 63.5 / 64.0 && text(Rounding::None, 64) > 62.5 / 64.0);
        let mean_kl = |positions| text_tolerance(KvType::F32, Rounding::Int8, positions).mean_kl;
        assert!(near(mean_kl(64), 4e-3 * 1.375) && mean_kl(2999) > mean_kl(MANY) && mean_kl(MANY) == 4e-3);
        let exact = |positions| text_tolerance(KvType::F32, Rounding::None, positions).mean_kl;
        assert_eq!(exact(64), exact(MANY), "what only sums differently is nowhere near its bound");
        assert_eq!(operations_tolerance(KvType::F32, Rounding::Int8, SHORT).top1, 0.9);
        assert!(operations_tolerance(KvType::F32, Rounding::Int8, 16).top1 < 0.9);
    }

    #[test]
    fn what_was_missed_is_told_with_its_figures() {
        let told = |what, measured, bound| in_words(&Missed { what, measured, bound });
        assert_eq!(told("top-1 agreement", 0.9394, 0.96), "top-1 agreement 93.94 %, not >= 96.00 %");
        assert_eq!(told("mean KL", 4.12e-3, 4e-3), "mean KL 4.1e-3, not <= 4e-3");
    }

    #[test]
    fn a_bound_that_is_none_is_not_shown() {
        assert_eq!((most(4e-3).as_str(), most(f64::INFINITY).as_str()), ("<= 4e-3", ""));
    }
}
