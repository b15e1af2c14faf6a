//! The text of `main`: what lies in arrays is named by constants alone, so that it lies in registers on every device.

use super::tuning::{Shape, Tuning, Work};

/// A product's `main`. What it calls comes from the parts before it: see [`super::write_main`].
pub(super) fn main(tuning: &Tuning, work: &Work, shape: &Shape) -> String {
    let Work { tile, halves, .. } = *work;
    let sums = shape.outs * tile;
    let stats: String = (0..tile).map(|t| format!("    var stats_{t} = vec2<f32>(0.0, 1.0);\n")).collect();
    let names = ["first", "second"];
    let zero = |name: &&str| format!("        var {name}_sums: array<f32, {sums}>;\n");
    let declared: String = names[..halves].iter().map(zero).collect();
    let reduced: String = names[..halves].iter().map(|name| reduced(name, sums, shape.lanes)).collect();
    let ahead =
        if tuning.prefetch { loads(tuning, work, shape, "var", "", "share", 0) } else { String::new() };
    format!(
        "@compute @workgroup_size(WG) fn main(\n    \
         @builtin(workgroup_id) wg: vec3<u32>, @builtin(subgroup_id) subgroup: u32,\n    \
         @builtin(subgroup_size) width: u32, @builtin(subgroup_invocation_id) inside: u32) {{\n    \
         let lane = subgroup * width + inside;\n    let first_row = first_row_of(wg);\n    \
         let count = {count};\n    begin(lane, first_row);\n{stats}    \
         for (var round = 0u; round < ROUNDS; round++) {{\n        \
         let first_out = ((wg.y * ROUNDS + round) * (WG / LANES) + lane / LANES) * OUTS;\n        \
         let share = lane % LANES;\n{declared}{ahead}        \
         for (var start = 0u; start < STEPS; start += CHUNK) {{\n{held}            \
         let end = min(start + CHUNK, STEPS);\n            \
         for (var g = start + share; g < end; g += {stride}u) {{\n{body}            }}\n        }}\n\
         {reduced}{finished}    }}\n}}\n",
        // Where rows are held there are as many as that.
        count = if work.held.is_some() { "TILE" } else { "min(TILE, all_rows() - first_row)" },
        held = if work.held.is_some() { hold(tile) } else { String::new() },
        stride = shape.lanes * tuning.unrolled,
        body = body(tuning, work, shape),
        finished = finished(sums, shape.lanes, halves, tile),
    )
}

/// The workgroup's rows, once for all rounds where they are held as a whole.
fn hold(tile: usize) -> String {
    let row = |t: usize| format!("row_of(first_row + min({t}u, count - 1u))");
    let stats: String = (0..tile)
        .map(|t| format!("                    stats_{t} = statistics(lane, {});\n", row(t)))
        .collect();
    let holds: String = (0..tile)
        .map(|t| format!("                hold(lane, {t}u, {}, stats_{t}, start);\n", row(t)))
        .collect();
    format!(
        "            if (round == 0u || STEPS > CHUNK) {{\n                if (round == 0u && start == 0u) {{\n\
         {stats}                }}\n                workgroupBarrier();\n{holds}                workgroupBarrier();\n            }}\n"
    )
}

/// Statements that load the weights of steps from `at` on.
fn loads(
    tuning: &Tuning,
    work: &Work,
    shape: &Shape,
    word: &str,
    prefix: &str,
    at: &str,
    ahead: usize,
) -> String {
    let mut text = String::new();
    for n in 0..tuning.unrolled {
        let step = shape.lanes * (ahead + n);
        for (name, o) in units(work, shape) {
            text += &format!(
                "            {word} {prefix}{name}_{o}_{n} = {name}_raw(first_out + {o}u, min({at} + {step}u, STEPS - 1u));\n"
            );
        }
    }
    text
}

/// What is done with a lane's next steps.
fn body(tuning: &Tuning, work: &Work, shape: &Shape) -> String {
    let mut text = match tuning.prefetch {
        true => loads(tuning, work, shape, "let", "next_", "g", tuning.unrolled),
        false => loads(tuning, work, shape, "let", "", "g", 0),
    };
    for n in 0..tuning.unrolled {
        let is_there = if n == 0 { String::new() } else { format!("if (g + {}u < end) ", shape.lanes * n) };
        text += &format!("                {is_there}{{\n{}                }}\n", multiplied(work, shape, n));
    }
    if tuning.prefetch {
        for n in 0..tuning.unrolled {
            for (name, o) in units(work, shape) {
                text += &format!("                {name}_{o}_{n} = next_{name}_{o}_{n};\n");
            }
        }
    }
    text
}

/// The names of what a lane multiplies at the same time, and their outputs.
fn units(work: &Work, shape: &Shape) -> Vec<(&'static str, usize)> {
    let names = &["first", "second"][..work.halves];
    (0..shape.outs).flat_map(|o| names.iter().map(move |name| (*name, o))).collect()
}

/// A step's products with all rows.
fn multiplied(work: &Work, shape: &Shape, n: usize) -> String {
    let mut text = String::new();
    for (name, o) in units(work, shape) {
        text += &format!("                    let {name}_{o} = {name}_unit({name}_{o}_{n});\n");
    }
    let g = format!("g + {}u", shape.lanes * n);
    for t in 0..work.tile {
        // Rows of the upper half of a large tile that are not there are left out two at a time.
        let is_there = if t < 4 { String::new() } else { format!("if (count > {}u) ", t / 2 * 2) };
        text += &format!(
            "                    {is_there}{{\n                        \
             let a = activations({t}u, first_row + min({t}u, count - 1u), {g}, start);\n"
        );
        for (name, o) in units(work, shape) {
            let sum = format!("{name}_sums[{}]", o * work.tile + t);
            text += &format!("                        {sum} = {name}_added({name}_{o}, a, {sum});\n");
        }
        text += "                    }\n";
    }
    text
}

/// The sums of all lanes that share an output, added up in one order however many sums there are: lanes `LANES / 2` apart
/// first. While there are several, each lane of a pair goes on with half of them.
fn reduced(name: &str, sums: usize, lanes: usize) -> String {
    let mut text = String::new();
    let mut left: Vec<String> = (0..sums).map(|i| format!("{name}_sums[{i}]")).collect();
    let mut step = lanes / 2;
    while step > 0 {
        let halves = left.len() / 2;
        let names: Vec<String> = (0..halves.max(1)).map(|i| format!("{name}_by_{step}_{i}")).collect();
        for (i, to) in names.iter().enumerate() {
            text += &match halves {
                0 => format!("        let {to} = {0} + subgroupShuffleXor({0}, {step}u);\n", left[i]),
                _ => {
                    let (low, high) = (&left[i], &left[i + halves]);
                    let is_high = format!("(lane & {step}u) != 0u");
                    format!(
                        "        let {to} = select({low}, {high}, {is_high}) + \
                         subgroupShuffleXor(select({high}, {low}, {is_high}), {step}u);\n"
                    )
                }
            };
        }
        left = names;
        step /= 2;
    }
    let sums = left.iter().enumerate().map(|(i, from)| format!("        let {name}_sum_{i} = {from};\n"));
    text + &sums.collect::<String>()
}

/// Each lane's share of the sums goes where it belongs.
fn finished(sums: usize, lanes: usize, halves: usize, tile: usize) -> String {
    let (share, apart) = ((sums / lanes).max(1), (lanes / sums).max(1));
    let mut text = format!("        if (share % {apart}u == 0u) {{\n");
    for i in 0..share {
        let second = if halves == 2 { format!("second_sum_{i}") } else { "0.0".into() };
        text += &format!(
            "            let at_{i} = share / {apart}u * {share}u + {i}u;\n            \
             let out_{i} = first_out + at_{i} / {tile}u;\n            \
             if (at_{i} % {tile}u < count && is_made(out_{i})) {{\n                \
             finish(first_row + at_{i} % {tile}u, FIRST_OUT + out_{i}, first_sum_{i}, {second});\n            }}\n"
        );
    }
    text + "        }\n"
}
