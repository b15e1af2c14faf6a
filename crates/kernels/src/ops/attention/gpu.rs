//! Three kernels: rows that are taken alone, tiles of rows that share what is read, and stretches of long contexts that are put
//! together. What is done in which way is said in `gpu/attended.rs`; the order of sums is the same in all.

use super::Attention;
use crate::backend::{BackendError, KvType};
use crate::gpu::attended::{NO_CELL, PORTION, STRETCH, TILE, cells};
use crate::gpu::record::kv_words;
use crate::gpu::{Count, Kernel, Recorder, View, unrolled};
use crate::program::KvLayer;

/// Heads of a row that share the keys and values that a workgroup reads, at most: the components of a vector.
const SHARE: usize = 4;
/// Lanes of a workgroup that takes tiles: each has the scores of 4 positions, and as many rows as there are fours of them.
const TILE_LANES: usize = 64;
/// Lanes of a workgroup that puts stretches together.
const JOIN_LANES: usize = 64;

/// Bytes that are staged at a time at most: more of them hide more of the memory's latency, but fewer workgroups fit beside each
/// other.
const STAGED_ALONE: usize = 36 << 10;
const STAGED_IN_TILES: usize = 9 << 10;

/// Positions of a portion whose values are staged at a time at least: lanes that take a row alone go through them one by one, and
/// those of a tile in fours.
const LEAST_ALONE: usize = 1;
const LEAST_IN_TILES: usize = 4;

/// How a layer's keys and values lie, and are read.
#[derive(Clone, Copy)]
struct Cache {
    kv_type: KvType,
    head_dim: usize,
    kv_heads: usize,
}

impl Cache {
    fn words(self) -> usize {
        kv_words(self.kv_type, self.head_dim)
    }

    /// Words of four elements.
    fn four(self) -> usize {
        if self.kv_type == KvType::F16 { 2 } else { 4 }
    }

    /// Fours of a head, the last filled up.
    fn fours(self) -> usize {
        self.words().div_ceil(self.four())
    }

    /// Whether heads are whole vectors of four words.
    fn is_aligned(self) -> bool {
        self.words().is_multiple_of(4)
    }

    /// Fours that are read at once.
    fn per(self) -> usize {
        if self.is_aligned() { 4 / self.four() } else { 1 }
    }

    /// Fours of a position's keys that are staged at a time, where there is room for so many bytes of `positions`: a part of the
    /// head, so that all are alike.
    fn key_fours(self, positions: usize, room: usize) -> usize {
        let fits = |n: &usize| positions * (n | 1) * 4 * self.four() <= room;
        let parts =
            (1..=self.fours()).filter(|n| self.fours().is_multiple_of(*n) && n.is_multiple_of(self.per()));
        parts.filter(fits).max().unwrap_or(self.per())
    }

    /// Positions of each of `portions` whose values are staged at a time.
    fn value_rows(self, portions: usize, room: usize, least: usize) -> usize {
        let fits = |n: &usize| portions * n * self.fours() * 4 * self.four() <= room;
        [64, 32, 16, 8, 4, 2, 1].into_iter().find(fits).unwrap_or(least).max(least)
    }

    /// Bytes that must be staged at a time at least.
    fn least_staged(self, portions: usize, least: usize) -> usize {
        let fours = (PORTION * (self.per() | 1)).max(least * self.fours());
        portions * fours * 4 * self.four()
    }

    /// What a kernel of so many lanes stages of `portions` in so much room; gives how often its lanes read for that.
    fn write_staging(
        self,
        kernel: &mut Kernel,
        lanes: usize,
        portions: usize,
        room: usize,
        least: usize,
    ) -> [(&'static str, usize); 2] {
        let keys = self.key_fours(portions * PORTION, room);
        let values = self.value_rows(portions, room, least);
        kernel.size("K_FOURS", keys);
        kernel.size("V_ROWS", values);
        kernel.size("STAGED", portions * (PORTION * (keys | 1)).max(values * self.fours()));
        let loads = |fours: usize| (portions * fours / self.per()).div_ceil(lanes);
        [("K_LOADS", loads(PORTION * keys)), ("V_LOADS", loads(values * self.fours()))]
    }
}

pub(crate) fn record(op: &Attention, recorder: &mut Recorder) -> Result<(), BackendError> {
    let KvLayer { kv_heads, head_dim } = op.layer(recorder.program);
    let cache = Cache { kv_type: recorder.limits.kv_type, head_dim, kv_heads };
    // Where no context has several stretches there are none.
    let places = cells(recorder.limits);
    let cells = recorder.common_scratch("stretches", &[places.max(1), op.heads, head_dim + 2])?;
    alone(op, recorder, cache, cells);
    tiles(op, recorder, cache);
    if places > 0 {
        stretches(op, recorder, head_dim, cells);
    }
    Ok(())
}

/// What all three need of an op.
fn write_op(op: &Attention, kernel: &mut Kernel, recorder: &mut Recorder, head_dim: usize, share: usize) {
    kernel.size("HEADS", op.heads);
    kernel.size("DIM", head_dim);
    kernel.size("CELL", head_dim + 2);
    kernel.size("PORTION", PORTION);
    kernel.size("STRETCH", STRETCH);
    // A window of as much as there can be is none.
    kernel.size("WINDOW", op.window.map_or(u32::MAX as usize, |window| window.min(u32::MAX as usize)));
    kernel.part(&format!("alias PerHead = {};", ["f32", "vec2<f32>", "vec3<f32>", "vec4<f32>"][share - 1]));
    let each = |of: &dyn Fn(&str) -> String| components(share).map(of).collect::<Vec<_>>().join(", ");
    let exps = each(&|c| format!("exp_(x{c})"));
    kernel.part(&format!("fn exps(x: PerHead) -> PerHead {{ return PerHead({exps}); }}"));
    let mut capped = "x".to_string();
    if let Some(cap) = op.soft_cap {
        kernel.float("CAP", cap);
        capped = format!("PerHead({})", each(&|c| format!("soft_capped(x{c}, CAP)")));
    }
    kernel.part(&format!("fn capped(x: PerHead) -> PerHead {{ return {capped}; }}"));
    kernel.flag("HAS_SINK", op.sinks.is_some());
    match op.sinks {
        Some(sinks) => {
            let sinks = recorder.vector(sinks);
            kernel.read("sinks", "f32", sinks);
            kernel.part("fn sink_of(head: u32) -> f32 { return sinks[head]; }");
        }
        None => kernel.part("fn sink_of(head: u32) -> f32 { return -3e38; }"),
    }
    kernel.part(include_str!("sums.wgsl"));
}

/// The selectors of the heads in a vector of them.
fn components(share: usize) -> impl Iterator<Item = &'static str> {
    let all = if share == 1 { [""; 4] } else { [".x", ".y", ".z", ".w"] };
    all.into_iter().take(share)
}

/// Keys and values of a layer, and functions that stage them.
fn write_cache(op: &Attention, kernel: &mut Kernel, recorder: &Recorder, cache: Cache) {
    let of = if cache.is_aligned() { "vec4<u32>" } else { "u32" };
    kernel.read("keys", of, recorder.keys(op.kv));
    kernel.read("values", of, recorder.values(op.kv));
    kernel.size("WIDTH", recorder.width(op.qkv));
    kernel.size("KV_HEADS", cache.kv_heads);
    kernel.size("KV_WORDS", cache.words());
    kernel.size("FOURS", cache.fours());
    kernel.size("PER", cache.per());
    kernel.float("SCALE", op.scale);
    kernel.part(match cache.kv_type {
        KvType::F32 => include_str!("cache_f32.wgsl"),
        KvType::F16 => include_str!("cache_f16.wgsl"),
    });
    // Fours that are read at once.
    let (granule, stage) = match (cache.is_aligned(), cache.kv_type) {
        (true, KvType::F16) => {
            ("vec4<u32>", "    staged[to] = granule.xy;\n    staged[to + 1u] = granule.zw;")
        }
        _ => ("Four", "    staged[to] = granule;"),
    };
    kernel.part(&format!("alias Granule = {granule};\nfn stage(to: u32, granule: Granule) {{\n{stage}\n}}"));
    for name in ["keys", "values"] {
        let body = match cache.is_aligned() {
            true => format!("{name}[at / 4u + g]"),
            false => {
                let word = |k| format!("{name}_word(at, {n}u * g + {k}u)", n = cache.four());
                kernel.part(&format!(
                    "fn {name}_word(at: u32, i: u32) -> u32 {{\n    if (i < KV_WORDS) {{\n        \
                     return {name}[at + i];\n    }}\n    return 0u;\n}}"
                ));
                format!("Four({})", (0..cache.four()).map(word).collect::<Vec<_>>().join(", "))
            }
        };
        kernel.part(&format!("fn {name}_at(at: u32, g: u32) -> Granule {{ return {body}; }}"));
    }
}

/// Rows that are taken alone.
fn alone(op: &Attention, recorder: &mut Recorder, cache: Cache, cells: View) {
    let (group, teams) = (op.heads / cache.kv_heads, STRETCH / PORTION);
    let held = (2 * cache.fours()).div_ceil(PORTION);
    let share_of = |parts: usize| group.div_ceil(parts);
    let room = |parts: usize| {
        // A vector of three takes as much as one of four.
        let per_head = 4 * share_of(parts).next_power_of_two();
        let fixed = (4 * cache.fours() + STRETCH + 11 * teams + 2 * held * PORTION) * per_head + STRETCH / 4;
        recorder.traits.workgroup_memory.saturating_sub(fixed).min(STAGED_ALONE)
    };
    // Few heads share what is read where there is little room.
    let parts =
        (group.div_ceil(SHARE)..group).find(|&parts| room(parts) >= cache.least_staged(teams, LEAST_ALONE));
    let parts = parts.unwrap_or(group);
    let (share, room) = (share_of(parts), room(parts));
    // None of them is left without a head.
    let parts = group.div_ceil(share);
    let mut kernel = Kernel::new("attention_alone", STRETCH);
    kernel.read("qkv", "f32", recorder.buf(op.qkv));
    kernel.write("y", "f32", recorder.buf(op.out));
    kernel.write("cells", "f32", cells);
    write_op(op, &mut kernel, recorder, cache.head_dim, share);
    write_cache(op, &mut kernel, recorder, cache);
    kernel.size("GROUP", group);
    kernel.size("PARTS", parts);
    kernel.size("SHARE", share);
    kernel.size("HELD", held);
    let [key_loads, value_loads] = cache.write_staging(&mut kernel, STRETCH, teams, room, LEAST_ALONE);
    kernel.size("NO_CELL", NO_CELL as usize);
    let join = |of: Vec<String>, by: &str| of.join(by);
    let heads = || (0..share).zip(components(share));
    let query = heads().map(|(s, _)| format!("qkv[at + min({s}u, count - 1u) * DIM] * SCALE")).collect();
    let sinks = heads().map(|(s, _)| format!("sink_of(first + min({s}u, count - 1u))")).collect();
    kernel.part(&format!(
        "fn query_of(at: u32, count: u32) -> PerHead {{\n    return PerHead({});\n}}\n\
         fn sinks_of(first: u32, count: u32) -> PerHead {{\n    return PerHead({});\n}}",
        join(query, ", "),
        join(sinks, ", ")
    ));
    for (name, to, apart) in [("leave", "y", "DIM"), ("keep", "cells", "CELL")] {
        let each = |(s, c)| format!("    if ({s}u < count) {{ {to}[at + {s}u * {apart}] = p{c}; }}");
        let each = join(heads().map(each).collect(), "\n");
        kernel.part(&format!("fn {name}(at: u32, count: u32, p: PerHead) {{\n{each}\n}}"));
    }
    let loads = ("LOADS", key_loads.1.max(value_loads.1));
    let counts = [("HELD", held), key_loads, value_loads, loads];
    kernel.part(&unrolled(include_str!("alone.wgsl"), &counts));
    recorder.dispatch(&kernel, [Count::Fixed(cache.kv_heads * parts), Count::Items, Count::Fixed(1)]);
}

/// How four columns of a head at `at` are read and written.
const FOURS: &str = "\
fn before_at(at: u32, column: u32) -> vec4<f32> { return y[(at + column) / 4u]; }
fn leave(at: u32, column: u32, four: vec4<f32>) { y[(at + column) / 4u] = four; }";

const COLUMNS: &str = "\
fn before_at(at: u32, column: u32) -> vec4<f32> {
    var four = vec4<f32>(0.0);
    for (var k = 0u; k < min(4u, DIM - column); k++) {
        four[k] = y[at + column + k];
    }
    return four;
}
fn leave(at: u32, column: u32, four: vec4<f32>) {
    for (var k = 0u; k < min(4u, DIM - column); k++) {
        y[at + column + k] = four[k];
    }
}";

/// Tiles of rows: as many together as there is room for.
fn tiles(op: &Attention, recorder: &mut Recorder, cache: Cache) {
    let fixed = |rows: usize| 16 * rows * ((cache.fours() | 1) + PORTION / 4 + 1) + 28 * rows + 16;
    let room =
        |rows: usize| recorder.traits.workgroup_memory.saturating_sub(fixed(rows)).min(STAGED_IN_TILES);
    let all = [TILE, TILE / 2, TILE / 4];
    let rows = all.into_iter().find(|&rows| room(rows) >= cache.least_staged(1, LEAST_IN_TILES)).unwrap_or(4);
    let mut kernel = Kernel::new("attention_tiles", TILE_LANES);
    kernel.read("qkv", "f32", recorder.buf(op.qkv));
    let in_fours = cache.head_dim.is_multiple_of(4);
    kernel.write("y", if in_fours { "vec4<f32>" } else { "f32" }, recorder.buf(op.out));
    kernel.part(if in_fours { FOURS } else { COLUMNS });
    write_op(op, &mut kernel, recorder, cache.head_dim, 1);
    write_cache(op, &mut kernel, recorder, cache);
    kernel.size("ROWS", rows);
    let [key_loads, value_loads] =
        cache.write_staging(&mut kernel, TILE_LANES, 1, room(rows), LEAST_IN_TILES);
    let held = cache.fours().div_ceil(16);
    let counts = [("EACH", rows / 4), ("HELD", held), ("FOUR", 4), key_loads, value_loads];
    kernel.part(&unrolled(include_str!("tiles.wgsl"), &counts));
    recorder.dispatch(&kernel, [Count::Fixed(op.heads), Count::Tiles, Count::Fixed(TILE / rows)]);
}

/// Stretches of rows whose contexts are long.
fn stretches(op: &Attention, recorder: &mut Recorder, head_dim: usize, cells: View) {
    let mut kernel = Kernel::new("attention_stretches", JOIN_LANES);
    kernel.read("cells", "f32", cells);
    kernel.write("y", "f32", recorder.buf(op.out));
    write_op(op, &mut kernel, recorder, head_dim, 1);
    let counts = [("HELD", head_dim.div_ceil(JOIN_LANES)), ("FOUR", 4)];
    kernel.part(&unrolled(include_str!("stretches.wgsl"), &counts));
    recorder.dispatch(&kernel, [Count::Fixed(op.heads), Count::Splits, Count::Fixed(1)]);
}
