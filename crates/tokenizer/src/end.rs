//! Which tokens end an answer when the files forget to say.

/// Names that end a turn or a text in the models that have them as control tokens.
const WELL_KNOWN: [&str; 13] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|return|>",
    "<|call|>",
    "<EOT>",
    "[EOT]",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

/// Adds the well-known tokens that `control_token` finds; leaves the list sorted.
pub(crate) fn add_well_known(ids: &mut Vec<u32>, control_token: impl Fn(&str) -> Option<u32>) {
    ids.extend(WELL_KNOWN.iter().filter_map(|name| control_token(name)));
    // In the "harmony" format an answer goes on after <|end|>: it ends a message, <|return|> and <|call|> end the turn.
    if control_token("<|return|>").is_some() && control_token("<|call|>").is_some() {
        let end = control_token("<|end|>");
        ids.retain(|&id| Some(id) != end);
    }
    ids.sort_unstable();
    ids.dedup();
}
