//! Draws in the emulator, against the sort of `sampler::reference` and against the CPU's sampler.

use super::super::rows::tests::{ODD, workspace};
use super::super::sim::mutants::{Module, Mutant, all_are_found};
use super::super::sim::{Emulator, Mode};
use super::*;
use crate::backend::Backend;
use crate::dtype::Precision;
use crate::error::KernelError;
use crate::step::{Step, StepLimits};
use sampler::{Scratch as HostScratch, draw_all, reference};

/// Numbers that come again with the seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// Even, tied, flat, wide, with a head, with holes.
    fn row(&mut self, len: usize) -> Vec<f32> {
        let (half_width, unit) =
            self.one_of(&[(0, 1.0), (3, 1.0), (999, 1e-4), (999, 1e-2), (999, 1e-1), (9, 0.5)]);
        let (heads, holes) = (self.below(4), self.below(4));
        let mut row: Vec<f32> = (0..len)
            .map(|_| (self.below(2 * half_width + 1) as i32 - half_width as i32) as f32 * unit)
            .collect();
        for _ in 0..5 * heads {
            row[self.below(len)] += 6.0 * heads as f32;
        }
        for _ in 0..holes * len / 4 {
            row[self.below(len)] = f32::NEG_INFINITY;
        }
        row
    }

    /// A draw that cuts, and now and then adjusts, pushed to `draws`.
    fn push_draw(&mut self, draws: &mut Draws, output: u32, before: usize) {
        let vocab = draws.sampled_vocab;
        let few = 1 + self.below(vocab.min(80));
        let some = 1 + self.below(vocab);
        let adjusts = self.below(2) == 0;
        let penalties = self.one_of(&[[1.0, 0.0, 0.0], [1.3, 0.2, -0.5], [0.7, 0.0, 1.5]]);
        let [repetition_penalty, frequency_penalty, presence_penalty] =
            if adjusts { penalties } else { [1.0, 0.0, 0.0] };
        let mut draw = Draw {
            output,
            after: (before > 0 && self.below(2) == 0).then(|| self.below(before.max(1)) as u32),
            temperature: self.one_of(&[0.0, 0.3, 1.0, 1.0, 2.5]),
            top_k: self.one_of(&[0, 0, 1, few, some, vocab, vocab + 5]),
            top_p: self.one_of(&[1.0, 1.0, 0.95, 0.3, 1e-6, 0.999]),
            min_p: self.one_of(&[0.0, 0.0, 0.05, 1.0]),
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            // Nearer to 1, or at a simple share of equal weights, the last bit of a sum decides.
            uniform: self.one_of(&[0.0, 1.0 - 1e-9, 0.4999]),
            ..Draw::default()
        };
        if self.below(4) > 0 {
            draw.uniform = self.uniform();
        }
        if adjusts {
            self.push_lists(draws, &mut draw);
        }
        draws.draws.push(draw);
    }

    fn push_lists(&mut self, draws: &mut Draws, draw: &mut Draw) {
        // Each id once, some of them beyond those that can be drawn.
        let n = draws.sampled_vocab + 3;
        let ids = |random: &mut Self, most: usize| {
            let (first, step) = (random.below(n), 1 + random.below(n));
            let mut ids: Vec<u32> =
                (0..random.below(most + 1)).map(|i| ((first + i * step) % n) as u32).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let (banned, counts, biases) = (draws.banned.len(), draws.counts.len(), draws.biases.len());
        let new = ids(self, 3);
        draws.banned.extend(new);
        let new = ids(self, 40);
        draws.counts.extend(new.into_iter().map(|id| (id, self.below(4) as u32)));
        let forces = self.below(3) == 0;
        let new = ids(self, 9);
        let worth = [-100.0, -3.0, 0.5, 7.0, if forces { 100.0 } else { 99.0 }];
        draws.biases.extend(new.into_iter().map(|id| (id, self.one_of(&worth))));
        draw.banned = banned..draws.banned.len();
        draw.counts = counts..draws.counts.len();
        draw.biases = biases..draws.biases.len();
        if self.below(3) == 0 {
            draw.mask = Some(draws.masks.len());
            let words = (0..mask_words(draws.sampled_vocab)).map(|_| self.next() as u32);
            draws.masks.extend(words);
        }
    }
}

/// A backend that draws from logits which nobody computed.
struct Table {
    b: CudaBackend<Emulator>,
    vocab: usize,
    rows: usize,
    before: Vec<Drawn>,
}

impl Table {
    fn new(mode: Mode, module: Option<&Module>, rows: usize, vocab: usize) -> Self {
        let device = Emulator::new(mode, 90);
        if let Some(module) = module {
            device.replace(module);
        }
        let mut b = CudaBackend::new(device, Precision::F32);
        let limits = StepLimits {
            tokens: rows,
            rows,
            outputs: rows,
            vocab_size: vocab,
            context_len: 64,
            block_len: 1,
            n_blocks: rows + 1,
        };
        b.reserve(workspace(&limits, ODD)).unwrap();
        Self { b, vocab, rows, before: Vec::new() }
    }

    /// What a step draws; `logits`: `[outputs, vocab]`.
    fn draw(&mut self, logits: &[f32], draws: &Draws) -> std::result::Result<Vec<Drawn>, String> {
        let outputs = logits.len() / self.vocab;
        let n = outputs as u32;
        let width = 64;
        let mut tables = vec![0; outputs * width];
        (0..outputs).for_each(|row| tables[row * width] = row as u32 + 1);
        let step = Step {
            copies: &[],
            tokens: &vec![0; outputs],
            positions: &vec![0; outputs],
            slots: &Vec::from_iter(1..=n),
            row_start: &Vec::from_iter(0..=n),
            kv_len: &vec![1; outputs],
            expanded: &vec![false; outputs],
            tables: &tables,
            outputs: &Vec::from_iter(0..n),
        };
        let said = |e: KernelError| e.to_string();
        self.b.begin_step(&step).map_err(said)?;
        let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let memory = self.b.reserved("test").unwrap().gemm.logits("test", logits.len()).unwrap();
        self.b.device().write(memory.get(), 0, &bytes).map_err(said)?;
        self.b.vocab = self.vocab;
        self.b.sample(draws).map_err(said)?;
        let mut drawn = Vec::new();
        self.b.collect(&mut drawn).map_err(said)?;
        Ok(drawn)
    }

    /// Draws, and compares.
    fn check(&mut self, logits: &[f32], draws: &Draws) -> std::result::Result<(), String> {
        let drawn = self.draw(logits, draws)?;
        let mut host = Vec::new();
        draw_all(draws, logits, self.vocab, &self.before, &mut HostScratch::default(), &mut host);
        for (at, (got, draw)) in drawn.iter().zip(&draws.draws).enumerate() {
            let row = &logits[draw.output as usize * self.vocab..][..self.vocab];
            let expected = reference(draws, at, row, &self.before);
            if *got != expected || *got != host[at] {
                return Err(format!("{got:?} for {expected:?} of {} logits by {draw:?}", self.vocab));
            }
        }
        self.before = drawn;
        Ok(())
    }

    /// Steps of draws of all kinds, from rows of all kinds.
    fn play(&mut self, random: &mut Random, steps: usize) -> std::result::Result<(), String> {
        for _ in 0..steps {
            let outputs = 1 + random.below(self.rows);
            let mut logits: Vec<f32> = (0..outputs).flat_map(|_| random.row(self.vocab)).collect();
            if random.below(9) == 0 {
                let at = random.below(logits.len());
                logits[at] = random.one_of(&[f32::NAN, f32::INFINITY]);
            }
            let sampled_vocab = self.vocab - random.below(self.vocab.min(4));
            let mut draws = Draws { sampled_vocab, ..Draws::default() };
            for _ in 0..random.below(self.rows + 1) {
                let output = random.below(outputs) as u32;
                random.push_draw(&mut draws, output, self.before.len());
            }
            self.check(&logits, &draws)?;
        }
        Ok(())
    }
}

#[test]
fn tokens_are_the_reference_s() {
    let mut random = Random(1);
    for vocab in [1, 2, 31, 32, 33, 511, 512, 513, 1023, 1025, 2049, 5000, 9001] {
        Table::new(Mode::FAST, None, 4, vocab).play(&mut random, 40).unwrap();
    }
}

#[test]
fn whatever_order_threads_take() {
    for (i, mode) in Mode::all().into_iter().enumerate() {
        for vocab in [33, 700, 2600] {
            Table::new(mode, None, 3, vocab).play(&mut Random(7 + i as u64), 6).unwrap();
        }
    }
}

/// As many logits as DeepSeek-V2 has, and a vocabulary that is padded.
#[test]
fn large_vocabularies() {
    let mut random = Random(3);
    Table::new(Mode::FAST, None, 2, 102_400).play(&mut random, 6).unwrap();
    Table::new(Mode::FAST, None, 2, 163_840).play(&mut random, 2).unwrap();
}

/// Penalties of a step know what the one before it drew, in whichever half it lies.
#[test]
fn the_token_before_counts() {
    let mut table = Table::new(Mode::FAST, None, 2, 5);
    let logits = [2.0, 1.75, 1.0, 0.0, 0.0];
    let mut drawn = Vec::new();
    for step in 0..6 {
        let after = (step > 0).then_some(0);
        let draw = Draw { after, presence_penalty: 0.5, ..Draw::default() };
        let draws = Draws { sampled_vocab: 5, draws: vec![draw], ..Draws::default() };
        table.check(&logits, &draws).unwrap();
        drawn.push(table.before[0].unwrap());
    }
    // Only the last one counts here: what came before it is not on the list.
    assert_eq!(drawn, [0, 1, 0, 1, 0, 1]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut table = Table::new(Mode::FAST, None, 2, 40);
    let check = |table: &mut Table, draws: Draws, part: &str| {
        let error = table.draw(&[0.0; 40], &draws).unwrap_err();
        assert!(error.contains(part), "{error}");
    };
    let draws = |n: usize| Draws { sampled_vocab: 40, draws: vec![Draw::default(); n], ..Draws::default() };
    check(&mut table, draws(3), "3 draws, reserved for 2");
    check(&mut table, Draws { sampled_vocab: 41, ..draws(1) }, "larger than the model's");
    check(&mut table, Draws { draws: vec![Draw { output: 1, ..Draw::default() }], ..draws(0) }, "not there");
    check(
        &mut table,
        Draws { draws: vec![Draw { after: Some(0), ..Draw::default() }], ..draws(0) },
        "not made",
    );
    check(&mut table, Draws { banned: vec![0; 40_000], ..draws(1) }, "reserved are");
    table.check(&[0.0; 40], &draws(2)).unwrap();
}

/// Shares that decimals cannot say, bans of all there is, listed tokens that come again, and tens of thousands of equals.
fn what_chance_leaves_out(module: Option<&Module>) -> std::result::Result<(), String> {
    let hot = || Draw { temperature: 1.0, uniform: 0.95, ..Draw::default() };
    let draws =
        |draw: Draw, vocab: usize| Draws { sampled_vocab: vocab, draws: vec![draw], ..Draws::default() };
    let mut table = Table::new(Mode::FAST, module, 1, 10);
    table.check(&[0.0; 10], &draws(Draw { top_p: 0.3, ..hot() }, 10))?;
    table.check(&[0.0; 10], &draws(Draw { top_p: 0.7, ..hot() }, 10))?;
    let biases = (0..10).map(|id| (id, -100.0)).collect();
    let banned = Draws { biases, ..draws(Draw { biases: 0..10, ..Draw::default() }, 10) };
    table.check(&[0.0; 10], &banned)?;
    table.check(&[0.0; 10], &draws(Draw::default(), 10))?; // draws 0
    for penalties in [[0.0, 1.0], [1.0, 0.0]] {
        let [frequency_penalty, presence_penalty] = penalties;
        let draw =
            Draw { after: Some(0), counts: 0..1, frequency_penalty, presence_penalty, ..Draw::default() };
        table.check(&[0.5; 10], &Draws { counts: vec![(0, 0)], ..draws(draw, 10) })?;
        table.check(&[0.5; 10], &draws(Draw::default(), 10))?;
    }
    let vocab = 20_000;
    let mut random = Random(2);
    let nearly_even: Vec<f32> = (0..vocab).map(|_| random.below(1999) as f32 * 1e-4).collect();
    let mut table = Table::new(Mode::FAST, module, 1, vocab);
    for top_p in [0.25, 0.5, 0.75] {
        table.check(&nearly_even, &draws(Draw { top_p, uniform: 1.0 - 1e-9, ..hot() }, vocab))?;
    }
    Ok(())
}

#[test]
fn rare_cases_are_the_reference_s() {
    what_chance_leaves_out(None).unwrap();
}

const fn mutant(file: &'static str, from: &'static str, to: &'static str) -> Mutant {
    Mutant { file, from, to }
}

#[test]
fn mistakes_are_found() {
    const SELECT: &str = "select.h";
    const SAMPLE: &str = "sample.cu";
    let mutants = [
        mutant(
            SELECT,
            "return key > cut.key || (key == cut.key && id <= cut.last);",
            "return key >= cut.key;",
        ),
        mutant(SELECT, "id <= cut.last", "id < cut.last"),
        mutant(SELECT, "if (sum + low < sum) atoms_add(bin + 8 * BINS, 1);", ""),
        mutant(
            SELECT,
            "(double)bits_f(lower & 0x7f800000u) * 0x1p-23",
            "(double)bits_f(lower & 0x7f800000u) * 0x1p-22",
        ),
        mutant(SELECT, "if (next >= target) break;", "if (next > target) break;"),
        mutant(SELECT, "target = share * total * (1.0 - 0x1p-23);", "target = share * total;"),
        mutant(
            SELECT,
            "for (int i = tid(); i < 3 * BINS; i += THREADS)",
            "for (int i = tid(); i < BINS; i += THREADS)",
        ),
        mutant(SELECT, "if (k == 0 || (k & known) != prefix) return;", "if (k == 0) return;"),
        mutant(SELECT, "if (above + needed * unit < target) needed++;", ""),
        mutant(SELECT, "before += popc(mask);", "before += 32;"),
        mutant(SELECT, "if (shift > 0) continue;", "if (shift > 10) continue;"),
        mutant(
            SELECT,
            "    sts_d(s.groups + 8 * lane(), sum);\n    warp_sync();",
            "    sts_d(s.groups + 8 * lane(), sum);",
        ),
        mutant(SAMPLE, "numbers = numbers && x[j] < INFINITE;", ""),
        mutant(
            SAMPLE,
            "if (id < n && x > max) max = x, first = id;",
            "if (id < n && x >= max) max = x, first = id;",
        ),
        mutant(SAMPLE, "if (id < n && x > max) max = x, first = id;", "if (x > max) max = x, first = id;"),
        mutant(SAMPLE, "u32 own = numbers ? order_of(max) : NONE", "u32 own = order_of(max)"),
        mutant(SAMPLE, "pair.y + (counted ? 1 : 0)", "pair.y"),
        mutant(SAMPLE, "if (tid() == 0 && lds_u(s.found) == 0) penalise_one(a, after, 1);", ""),
        mutant(
            SAMPLE,
            "count > 0 ? float_of(a.draw, DRAW_PRESENCE) : 0.0f",
            "float_of(a.draw, DRAW_PRESENCE)",
        ),
        mutant(SAMPLE, "bias <= -BIAS_MAX ? MINUS_INFINITY : ", ""),
        mutant(SAMPLE, "if (lds_u(s.found) > 0) keep_forced(a, at, n, s);", ""),
        mutant(SAMPLE, "ldg_f(a.row + id) > MINUS_INFINITY;", "true;"),
        mutant(SAMPLE, "return y >= -125.0f ? bits_f(", "return y >= -200.0f ? bits_f("),
        mutant(SAMPLE, "if (!there) left -= m[j];", ""),
        mutant(SAMPLE, "left -= (double)w;", "left -= 0.5 * (double)w;"),
        mutant(SAMPLE, "sts_u(s.found, (u32)tile);", "sts_u(s.found, 0);"),
        mutant(SAMPLE, "max_f(float_of(draw, DRAW_MIN_P), 0x1p-126f)", "0x1p-126f"),
        mutant(
            SAMPLE,
            "    weigh_tiles(row, n, s, weight);\n    bar_sync();",
            "    weigh_tiles(row, n, s, weight);",
        ),
        mutant(SAMPLE, "if (cta_x() >= (int)ldg_u(words + N_DRAWS)) return;", ""),
        mutant(
            "step.h",
            "u32 half = 1 - ldg_u((const u32 *)step + STEP_IDS_HALF);",
            "u32 half = ldg_u((const u32 *)step + STEP_IDS_HALF);",
        ),
    ];
    all_are_found(&mutants, |module| {
        what_chance_leaves_out(module)?;
        for (vocab, steps) in [(33, 60), (700, 60), (2_600, 30), (20_000, 4)] {
            Table::new(Mode::all()[4], module, 3, vocab).play(&mut Random(5), steps)?;
        }
        Ok(())
    });
}
