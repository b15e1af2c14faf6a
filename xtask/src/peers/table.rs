//! What came of it, as the table that is kept.

use anyhow::{Result, bail};

use super::{DEPTH, Row, TOGETHER, Test};

/// What was measured for a row.
#[derive(Default)]
pub struct Figures {
    /// Bytes per second around our turn of each pair.
    pub memory: Vec<f64>,
    pub weight_bytes: f64,
    /// Bytes of keys and values for a token, where they count.
    pub kv_bytes: f64,
    decode: Pairs,
    prompt: Pairs,
}

#[derive(Default)]
struct Pairs {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Pairs {
    fn push(&mut self, ours: f64, theirs: f64) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    fn ratios(&self) -> Vec<f64> {
        self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours / theirs).collect()
    }

    /// `ours / theirs`, and the ratio's median, range and floor.
    fn cells(&self, floor: Option<f64>) -> [String; 2] {
        if self.ours.is_empty() {
            return [String::new(), String::new()];
        }
        let ratios = self.ratios();
        let fold = |f: fn(f64, f64) -> f64, start| ratios.iter().copied().fold(start, f);
        let (least, most) = (fold(f64::min, f64::INFINITY), fold(f64::max, 0.0));
        let middle = median(&ratios);
        let floor = floor.map_or(String::new(), |floor| {
            format!(", floor {floor:.2}: {}", if middle >= floor { "met" } else { "**missed**" })
        });
        [
            format!("{:.1} / {:.1}", median(&self.ours), median(&self.theirs)),
            format!("{middle:.2} ({least:.2}–{most:.2}){floor}"),
        ]
    }
}

impl Figures {
    pub fn new(kv_bytes: f64) -> Figures {
        Figures { kv_bytes, ..Figures::default() }
    }

    /// Takes in the speeds of a pair, ours and theirs, a prompt's before that of decoding.
    pub fn add(&mut self, speeds: &[Vec<f64>; 2]) -> Result<()> {
        match (speeds[0].as_slice(), speeds[1].as_slice()) {
            ([ours], [theirs]) => self.decode.push(*ours, *theirs),
            ([our_prompt, ours], [their_prompt, theirs]) => {
                self.prompt.push(*our_prompt, *their_prompt);
                self.decode.push(*ours, *theirs);
            }
            other => bail!("the two measured different tests: {other:?}"),
        }
        Ok(())
    }

    /// Parts of the memory's read speed that decoding takes, ours and theirs. Sequences that decode together share what they
    /// read in a way that depends on the model, so there is none for them.
    fn shares(&self, row: &Row) -> String {
        if row.test == Test::Together {
            return String::new();
        }
        let share = |speeds: &[f64]| {
            let parts: Vec<f64> = speeds
                .iter()
                .zip(&self.memory)
                .map(|(speed, memory)| speed * (self.weight_bytes + self.kv_bytes) / memory)
                .collect();
            median(&parts)
        };
        let (ours, theirs) = (share(&self.decode.ours), share(&self.decode.theirs));
        let floor = row.memory.map_or(String::new(), |floor| {
            format!(", floor {:.0}: {}", 100.0 * floor, if ours >= floor { "met" } else { "**missed**" })
        });
        format!("{:.0} / {:.0}{floor}", 100.0 * ours, 100.0 * theirs)
    }
}

/// A row of the table.
pub fn line(row: &Row, figures: &Figures) -> String {
    let test = match row.test {
        Test::Alone => String::new(),
        Test::Together => format!(", {TOGETHER} sequences, total"),
        Test::Deep => format!(", at {DEPTH} tokens"),
    };
    let [decode, decode_ratio] = figures.decode.cells(row.decode);
    let [prompt, prompt_ratio] = figures.prompt.cells(row.prompt);
    format!(
        "| {}{test} | {:.0} | {decode} | {decode_ratio} | {prompt} | {prompt_ratio} | {} | {:.1} |",
        row.file,
        (figures.weight_bytes + figures.kv_bytes) / 1e6,
        figures.shares(row),
        median(&figures.memory) / 1e9,
    )
}

pub fn whole(measured: &[(&Row, Figures)]) -> String {
    let mut lines = vec![
        "Tokens per second, ours / theirs, medians; the ratio is the median of the pairs' (least–most). Ours counts the \
         choice of each token and the engine's work, theirs `llama_decode` alone. The share is of the memory's read speed, \
         measured right before and after our turn of each pair (medians of rounds): MB read per token times tokens per second.\n"
            .to_string(),
        "| model | MB per token | decode | ratio | prompt | ratio | share of memory, % | memory, GB/s |".into(),
        "|---|---|---|---|---|---|---|---|".into(),
    ];
    lines.extend(measured.iter().map(|(row, figures)| line(row, figures)));
    lines.join("\n")
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.get(sorted.len().wrapping_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(a), Some(b)) => (a + b) / 2.0,
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::ROWS;

    #[test]
    fn a_row_has_medians_of_the_pairs_ratios_and_says_what_is_missed() {
        let mut figures = Figures { memory: vec![1e10; 3], weight_bytes: 1e8, ..Figures::default() };
        for (ours, theirs) in [(50.0, 20.0), (60.0, 30.0), (40.0, 10.0)] {
            figures.add(&[vec![300.0, ours], vec![100.0, theirs]]).expect("both have both tests");
        }
        let row = ROWS.iter().find(|row| row.file == "smollm2.q4_1").expect("it is there");
        let line = line(row, &figures);
        assert!(line.contains("| 50.0 / 20.0 | 2.50 (2.00–4.00), floor 2.00: met |"), "{line}");
        assert!(line.contains("| 300.0 / 100.0 | 3.00 (3.00–3.00), floor 4.00: **missed** |"), "{line}");
        // 50 tokens of 100 MB in a second, of 10 GB that could be read.
        assert!(line.ends_with("| 50 / 20 | 10.0 |"), "{line}");
        assert!(figures.add(&[vec![1.0], vec![1.0, 2.0]]).is_err());
    }

    #[test]
    fn medians_of_odd_and_even() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
        assert!(median(&[]).is_nan());
    }
}
