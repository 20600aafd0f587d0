//! Attention in latent space on the CUDA backend, run by the emulator: against the scalar reference, to the bit whatever the
//! company, and without touching a byte too many.

#![cfg(feature = "sim")]

use kernels::cuda::CudaBackend;
use kernels::cuda::sim::mutants::{Mutant, all_are_found};
use kernels::cuda::sim::{Copies, Counters, Emulator, Mode, Order};
use kernels::*;
use std::panic::AssertUnwindSafe;

/// A sequence under way: tokens already cached, new ones.
type Row = (usize, usize);

const LATENT: MlaDims = MlaDims {
    n_heads: 16,
    kv_lora_rank: 512,
    qk_nope_head_dim: 8,
    qk_rope_head_dim: 64,
    v_head_dim: 8,
    softmax_scale: 0.1,
};

/// Numbers in [-1, 1) that depend on their index and seed alone.
fn noise(len: usize, seed: u64) -> impl Iterator<Item = f32> {
    (0..len as u64).map(move |i| {
        let mut x = (i + (seed << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x ^ (x >> 29)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

struct Case {
    dims: MlaDims,
    rows: Vec<Row>,
    block_len: usize,
    precision: Precision,
    cache: CacheFormat,
}

impl Case {
    fn new(rows: &[Row]) -> Self {
        let (precision, cache) = (Precision::Bf16, CacheFormat::Plain);
        Self { dims: LATENT, rows: rows.to_vec(), block_len: 64, precision, cache }
    }

    fn cached(self, cache: CacheFormat) -> Self {
        Self { cache, ..self }
    }

    fn backend(&self, mode: Mode, arch: u32) -> CudaBackend<Emulator> {
        CudaBackend::new(Emulator::new(mode, arch), self.precision).with_cache(self.cache)
    }

    fn heads(self, n_heads: usize) -> Self {
        Self { dims: MlaDims { n_heads, ..self.dims }, ..self }
    }

    fn blocks_of(self, block_len: usize) -> Self {
        Self { block_len, ..self }
    }

    fn kv_len(&self, row: usize) -> usize {
        self.rows[row].0 + self.rows[row].1
    }

    fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.1).sum()
    }

    fn limits(&self) -> StepLimits {
        let context_len = (0..self.rows.len()).map(|r| self.kv_len(r)).max().unwrap() + 1;
        let width = context_len.div_ceil(self.block_len);
        StepLimits {
            tokens: context_len.max(self.tokens()),
            rows: self.rows.len(),
            outputs: 1,
            vocab_size: 2,
            context_len,
            block_len: self.block_len,
            n_blocks: self.rows.len() * width + 2,
        }
    }

    /// Blocks of a row: far apart, in falling order. Block 0 is padding.
    fn table(&self, row: usize) -> Vec<u32> {
        let limits = self.limits();
        (0..limits.table_width())
            .map(|i| (limits.n_blocks - 1 - (i * self.rows.len() + row)) as u32)
            .collect()
    }

    fn slots(&self, row: usize, positions: std::ops::Range<usize>) -> Vec<u32> {
        let (table, len) = (self.table(row), self.block_len);
        positions.map(|p| table[p / len] * len as u32 + (p % len) as u32).collect()
    }

    /// The latent rows of `sequences` into the cache, NaN wherever none is, then attention of the new tokens: `[tokens,
    /// heads, kv_lora_rank]`. Sequences and their queries depend on the row's number in `names` alone.
    fn run<B: Backend>(&self, b: &mut B, names: &[u64]) -> Vec<f32> {
        let arena = self.fill(b, names);
        self.attend(b, &arena, names)
    }

    /// [`Self::run`] but for attention.
    fn fill<B: Backend>(&self, b: &mut B, names: &[u64]) -> B::Arena {
        let (d, limits) = (self.dims, self.limits());
        let rope = Rope {
            inv_freq: (0..d.qk_rope_head_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect(),
            scale: 1.0,
        };
        b.reserve(Workspace {
            limits: limits.clone(),
            mla: d,
            rope,
            hidden: 16,
            widest: 16,
            widest_mlp: 16,
            n_experts: 0,
            top_k: 0,
        })
        .unwrap();
        let width = d.latent_width();
        let mut arena = b.arena(2, &limits, &d).unwrap();
        let norm = b.upload(&noise(d.kv_lora_rank, 99).map(|x| x + 1.5).collect::<Vec<_>>()).unwrap();
        let mut write = |b: &mut B, slots: &[u32], latents: Vec<f32>| {
            let n = slots.len();
            let step = Step {
                copies: &[],
                tokens: &vec![0; n],
                positions: &(0..n as u32).collect::<Vec<_>>(),
                slots,
                row_start: &[0, n as u32],
                kv_len: &[n as u32],
                expanded: &[true],
                tables: &vec![0; limits.table_width()],
                outputs: &[],
            };
            b.begin_step(&step).unwrap();
            let kv = b.upload(&latents).unwrap();
            let kv = View::dense(&kv, width);
            b.latent_write(LatentWrite { kv, norm: &norm, eps: 1e-6, dims: d, layer: 1, arena: &mut arena })
                .unwrap();
        };
        let all: Vec<u32> = (0..limits.slots() as u32).collect();
        for slots in all.chunks(limits.context_len) {
            write(b, slots, vec![f32::NAN; slots.len() * width]);
        }
        for (r, &name) in names.iter().enumerate() {
            let n = self.kv_len(r);
            write(b, &self.slots(r, 0..n), noise(n * width, name).collect());
        }
        arena
    }

    fn attend<B: Backend>(&self, b: &mut B, arena: &B::Arena, names: &[u64]) -> Vec<f32> {
        let (d, n) = (self.dims, self.tokens());
        let mut row_start = vec![0u32];
        let (mut positions, mut slots, mut tables, mut q) = (vec![], vec![], vec![], vec![]);
        for (r, &(cached, new)) in self.rows.iter().enumerate() {
            row_start.push(row_start[r] + new as u32);
            positions.extend((cached..cached + new).map(|p| p as u32));
            slots.extend(self.slots(r, cached..cached + new));
            tables.extend(self.table(r));
            // A token's query depends on its sequence and position alone.
            q.extend(
                (cached..cached + new)
                    .flat_map(|p| noise(d.n_heads * d.latent_width(), 1000 * names[r] + p as u64)),
            );
        }
        let kv_len: Vec<u32> = (0..self.rows.len()).map(|r| self.kv_len(r) as u32).collect();
        let step = Step {
            copies: &[],
            tokens: &vec![0; n],
            positions: &positions,
            slots: &slots,
            row_start: &row_start,
            kv_len: &kv_len,
            expanded: &vec![false; self.rows.len()],
            tables: &tables,
            outputs: &[],
        };
        b.begin_step(&step).unwrap();
        let q = b.upload(&q).unwrap();
        let mut out = b.buffer(n * d.n_heads * d.kv_lora_rank).unwrap();
        b.attend_latent(AttendLatent { q: &q, arena, layer: 1, out: &mut out, dims: d }).unwrap();
        b.read(&out, n * d.n_heads * d.kv_lora_rank)
    }

    fn emulated(&self, mode: Mode, arch: u32) -> Vec<f32> {
        let names: Vec<u64> = (1..=self.rows.len() as u64).collect();
        self.run(&mut self.backend(mode, arch), &names)
    }

    fn reference(&self) -> Vec<f32> {
        let names: Vec<u64> = (1..=self.rows.len() as u64).collect();
        self.run(&mut Reference::new(self.precision).with_cache(self.cache), &names)
    }

    /// bf16 rounds the softmax weights: 2^-9 of the largest value at most, for sums of weights that are one.
    fn check(&self, mode: Mode, arch: u32) {
        let want = self.reference();
        let got = self.emulated(mode, arch);
        let tolerance = match (self.precision, self.cache) {
            (Precision::Bf16, _) => 1.0 / 256.0,
            (Precision::F32, CacheFormat::Plain) => 2e-5,
            // Through the score, a number of a key is in all that its row attends to.
            (Precision::F32, CacheFormat::Fp8) => 1e-3,
        };
        let largest = want.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        // A latent number halfway between two of e4m3, an eighth apart at most, goes either way as the norm was rounded.
        let (mut either_ways, step) =
            if self.cache == CacheFormat::Fp8 { (want.len() / 1000, 0.125) } else { (0, 0.0) };
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let error = (g - w).abs() / largest;
            let near = error <= tolerance || (error <= step && either_ways > 0);
            assert!(near, "{:?} {:?} {mode:?} sm_{arch} [{i}]: {g}, expected {w}", self.rows, self.cache);
            either_ways -= usize::from(error > tolerance);
        }
    }
}

/// Lengths around tiles, parts and blocks: one key, tiles but one, parts of 512 keys and a rest.
const CACHES: [CacheFormat; 2] = [CacheFormat::Plain, CacheFormat::Fp8];
const LENGTHS: [usize; 15] = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 449, 512, 513, 1100];

#[test]
fn every_length() {
    for cache in CACHES {
        for (heads, arch) in [(16, 90), (16, 80), (16, 89), (20, 90), (20, 80)] {
            let rows: Vec<Row> = LENGTHS.iter().map(|&len| (len - 1, 1)).collect();
            Case::new(&rows).heads(heads).cached(cache).check(Mode::FAST, arch);
        }
    }
}

#[test]
fn any_number_of_heads() {
    for (heads, arch) in [(1, 90), (3, 89), (17, 90), (32, 80), (40, 89), (128, 90)] {
        for cache in CACHES {
            Case::new(&[(99, 1), (0, 1)]).heads(heads).cached(cache).check(Mode::FAST, arch);
        }
    }
}

/// More than twice the stages of tiles in a block of threads, more items than blocks of threads, a token of several parts.
#[test]
fn whatever_order_threads_and_copies_take() {
    for (heads, arch) in [(16, 90), (16, 89), (20, 90), (20, 80)] {
        for cache in CACHES {
            let case = Case::new(&[(448, 1), (70, 2), (599, 1), (0, 1), (63, 1)]).heads(heads).cached(cache);
            Mode::all().into_iter().for_each(|mode| case.check(mode, arch));
        }
    }
}

#[test]
fn larger_blocks_hold_several_pages() {
    for cache in CACHES {
        Case::new(&[(300, 2), (127, 1), (128, 1)]).blocks_of(192).cached(cache).check(Mode::FAST, 90);
    }
}

/// Chunks of a prompt, in latent space too.
#[test]
fn several_tokens_of_a_sequence() {
    for cache in CACHES {
        Case::new(&[(60, 9), (0, 3), (510, 4)]).cached(cache).check(Mode::FAST, 90);
    }
}

/// The kernels for any sizes: f32, blocks that are no pages.
#[test]
fn other_sizes() {
    for (block_len, precision) in [(7, Precision::Bf16), (64, Precision::F32), (16, Precision::F32)] {
        let case =
            Case { precision, ..Case::new(&[(599, 1), (0, 2), (64, 1)]).heads(3).blocks_of(block_len) };
        case.check(Mode::FAST, 90);
        let modes = Mode::all();
        modes[8..].iter().for_each(|&mode| case.check(mode, 90));
    }
    // FP8 of whole groups in pages and not, and of a group in part.
    for (precision, kv_lora_rank, block_len) in [
        (Precision::Bf16, 512, 7),
        (Precision::F32, 512, 64),
        (Precision::Bf16, 128, 64),
        (Precision::Bf16, 157, 64),
        (Precision::F32, 22, 5),
    ] {
        let case = Case::new(&[(599, 1), (0, 2), (64, 1)]).heads(3).blocks_of(block_len);
        let dims = MlaDims { kv_lora_rank, ..case.dims };
        Case { precision, dims, ..case.cached(CacheFormat::Fp8) }.check(Mode::FAST, 90);
    }
}

/// A sequence alone, in company, and its tokens in one step or in several: the same bits.
#[test]
fn company_changes_no_bit() {
    let cases = [(16, 90), (20, 90), (16, 89)].into_iter();
    for ((heads, arch), cache) in cases.flat_map(|case| CACHES.map(|cache| (case, cache))) {
        let case = |rows: &[Row]| Case::new(rows).heads(heads).cached(cache);
        let size = heads * LATENT.kv_lora_rank;
        let together = case(&[(70, 3), (599, 2), (0, 1)]).emulated(Mode::FAST, arch);
        let starts = [0, 3, 5];
        for (r, row) in [(70, 3), (599, 2), (0, 1)].into_iter().enumerate() {
            for token in 0..row.1 {
                let alone = case(&[(row.0 + token, 1)]);
                let names = [1 + r as u64];
                let alone = alone.run(&mut alone.backend(Mode::FAST, arch), &names);
                let at = (starts[r] + token) * size;
                let same = alone == together[at..at + size];
                assert!(same, "{heads} heads, sm_{arch}, {cache:?}: row {r} token {token}");
            }
        }
    }
}

/// What filling the cache and attention have done.
fn counted(case: &Case, arch: u32) -> Counters {
    let mut b = case.backend(Mode { lanes: true, ..Mode::FAST }, arch);
    case.run(&mut b, &[1]);
    b.device().counters()
}

/// Shared memory is read without conflicts, and no product is computed twice.
#[test]
fn products_and_conflicts() {
    let cases = [(16, 90, 1, 64), (16, 89, 1, 32), (20, 90, 2, 64), (20, 80, 2, 32)].into_iter();
    for ((heads, arch, tiles_of_heads, keys_of_a_tile), cache) in
        cases.flat_map(|case| CACHES.map(|cache| (case, cache)))
    {
        let counted = |len: usize| counted(&Case::new(&[(len - 1, 1)]).heads(heads).cached(cache), arch);
        // Of lengths that differ by tiles of keys within one part, all else is the same but for the pages' numbers.
        let (few, many) = (counted(65), counted(449));
        let tiles = |len: usize| len.div_ceil(keys_of_a_tile) as u64;
        let more = tiles(449) - tiles(65);
        let products = more * tiles_of_heads * keys_of_a_tile as u64 * (36 + 32) / 8;
        assert_eq!(many.mma - few.mma, products, "{heads} heads, sm_{arch}");
        assert_eq!(many.ldsm_wavefronts, many.ldsm_ideal, "{heads} heads, sm_{arch}");
        assert_eq!(many.shared_wavefronts, many.shared_ideal, "{heads} heads, sm_{arch}");
    }
}

/// What one more key costs: its row, and nothing else as long as it is in the same page.
#[test]
fn one_more_key_is_its_row() {
    for (cache, row) in [(CacheFormat::Plain, 1152), (CacheFormat::Fp8, 656)] {
        let attention_alone = |len: usize| {
            let case = Case::new(&[(len - 1, 1)]).cached(cache);
            let mut b = case.backend(Mode::FAST, 90);
            let arena = case.fill(&mut b, &[1]);
            let any = b.buffer(1).unwrap();
            b.read(&any, 1); // runs what is on the list
            b.device().reset_counters();
            case.attend(&mut b, &arena, &[1]);
            b.device().counters().loaded_bytes
        };
        assert_eq!(attention_alone(101) - attention_alone(100), row);
    }
}

/// Each mistake must show: as an error of the emulator, or in the numbers.
#[test]
fn mistakes_are_found() {
    let mutant = |from, to| Mutant { file: "mla_bf16.cu", from, to };
    let mutants = [
        mutant("cp_wait<STAGES - 2>();", "cp_wait<STAGES - 1>();"),
        mutant("bar_sync(); // the tile is there", "// the tile is there"),
        mutant(
            "best);\n            }\n        }\n    }\n    bar_sync();",
            "best);\n            }\n        }\n    }",
        ),
        mutant(
            "pack_bf16(lo, hi));\n            }\n        }\n    }\n    bar_sync();",
            "pack_bf16(lo, hi));\n            }\n        }\n    }",
        ),
        mutant(
            "sum);\n            }\n        }\n    }\n    bar_sync();",
            "sum);\n            }\n        }\n    }",
        ),
        mutant("reader.copy(At::stage(free));", "reader.copy(At::stage(stage));"),
        mutant("key + i % 2 < n ?", "key + i % 2 <= n ?"),
        mutant("i * 32 % KEYS < valid", "true"),
        mutant("end - position - tid() / 8;", "end - position - tid() / 8 + 1;"),
        mutant("u32 values[4];\n            ldsm4t(", "u32 values[4];\n            ldsm4("),
        mutant("(((chunk & 7) ^ (row & 7)) * 16)", "((chunk & 7) * 16)"),
        mutant("state.sum[m][half] *= shrink;", ""),
        mutant(
            "state.out[m][j][2 * half + 1] *= shrink;",
            "state.out[m][j][2 * half + 1] *= state.max[m][1 - half];",
        ),
        mutant("state.max[m][half] = max;\n", "\n"),
        mutant("sum += shfl_xor(sum, 1);", ""),
        mutant("unit += ncta_x();\n        enter();", "unit += 1;\n        enter();"),
        mutant("if (head >= p.heads) continue;", ""),
        mutant("if (head + row < p.heads) {", "{"),
        mutant("stage = stage + 1 == STAGES ? 0 : stage + 1;", "stage = stage == STAGES ? 0 : stage + 1;"),
        mutant("position % PAGE_ROWS * 128 + tid() * 16", "tid() * 16"),
        mutant("2 * step + lane() / 8));", "2 * step + lane() / 16));"),
        mutant("if constexpr (MT == 1) {\n            bar_sync();", "if constexpr (MT == 1) {"),
        Mutant { file: "mla_any.cu", from: "if (n < 2) return;", to: "if (n < 3) return;" },
        Mutant { file: "mla_any.cu", from: "stg_f(out + col, sum / total);", to: "stg_f(out + col, sum);" },
        Mutant { file: "mla.h", from: "== 1;", to: "<= 2;" },
    ];
    are_found(&mutants, &[(16, 90), (20, 90), (16, 89)], CacheFormat::Plain);
}

#[test]
fn mistakes_with_fp8_are_found() {
    let mutant = |from, to| Mutant { file: "mla_bf16.cu", from, to };
    let mutants = [
        mutant("bar_sync(); // the tile is whole", "// the tile is whole"),
        mutant("bar_sync(); // the tile is there", "// the tile is there"),
        mutant("cp_wait<STAGES - 2>();", "cp_wait<STAGES - 1>();"),
        mutant("tid() < valid);", "true);"),
        mutant(
            "numbers + i * (THREADS / KEYS * PAGE_ROWS * 16)",
            "numbers + i * (THREADS / KEYS * KEYS * 16)",
        ),
        mutant("PAGE_ROWS + first + row) * 16", "PAGE_ROWS + row) * 16"),
        mutant("from + first * 128 +", "from +"),
        mutant("(first + tid()) * 16", "tid() * 16"),
        mutant("(THREADS / KEYS) * 16 / GROUP_COLS;", "(THREADS / KEYS) / GROUP_COLS;"),
        mutant("KEYS * (RANK + 128) + row * 16", "KEYS * (RANK + 128)"),
        mutant("tile_chunk<KEYS>(row, 2 * first + 1)", "tile_chunk<KEYS>(row, 2 * first) + 16"),
        mutant("sts_v4(hi_to + i * 8192, hi);", "sts_v4(hi_to + i * 8192, lo);"),
        mutant("stage(FP8 ? STAGES : i)", "stage(FP8 ? STAGES - 1 : i)"),
        Mutant { file: "page.h", from: "widen_fp8(x.y, lo.z, lo.w);", to: "widen_fp8(x.y, lo.w, lo.z);" },
        Mutant { file: "page.h", from: "| (scale >> 16);", to: ";" },
        Mutant { file: "page.h", from: "slot % PAGE_ROWS * 16 + (u32)fp8_place", to: "(u32)fp8_place" },
    ];
    are_found(&mutants, &[(16, 90), (16, 89)], CacheFormat::Fp8);
}

fn are_found(mutants: &[Mutant], devices: &[(usize, u32)], cache: CacheFormat) {
    // Several parts, more parts than blocks of threads, more than twice the stages, a last page with rows behind the end.
    let case = |&(heads, arch): &(usize, u32)| {
        let rows = [(448, 1), (70, 1), (599, 1), (0, 1), (63, 1), (9, 1)];
        let case = Case::new(&rows).heads(heads).cached(cache);
        (case.reference(), case, arch)
    };
    let cases: Vec<_> = devices.iter().map(case).collect();
    let modes = [(Copies::Lazy, Order::Up), (Copies::Eager, Order::Down)].map(|(copies, order)| Mode {
        copies,
        order,
        races: true,
        ..Mode::FAST
    });
    all_are_found(mutants, |module| {
        for ((want, case, arch), mode) in
            cases.iter().flat_map(|case| modes.iter().map(move |mode| (case, *mode)))
        {
            let emulator = Emulator::new(mode, *arch);
            module.iter().for_each(|module| emulator.replace(module));
            let mut b = CudaBackend::new(emulator, case.precision).with_cache(case.cache);
            let names: Vec<u64> = (1..=case.rows.len() as u64).collect();
            let got = std::panic::catch_unwind(AssertUnwindSafe(|| case.run(&mut b, &names)));
            let got = got.map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())?;
            let error =
                got.iter().zip(want).map(|(g, w)| if g.is_nan() { f32::INFINITY } else { (g - w).abs() });
            let error = error.fold(0.0, f32::max);
            if error > 1.0 / 256.0 * want.iter().fold(1.0f32, |m, v| m.max(v.abs())) {
                return Err(format!("off by {error}"));
            }
        }
        Ok(())
    });
}
