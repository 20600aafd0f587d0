//! The products of the CUDA backend, in the emulator, against the scalar reference: any shape, any number of tokens, and
//! each token's bits whatever its neighbours.
#![cfg(feature = "sim")]

mod mistakes;
mod ops;

use kernels::cuda::CudaBackend;
use kernels::cuda::sim::mutants::Module;
use kernels::cuda::sim::{Emulator, Mode};
use kernels::*;
use ops::*;

fn device(mode: Mode, format: Format) -> CudaBackend<Emulator> {
    CudaBackend::new(Emulator::new(mode, 90), format.precision())
}

const CAREFUL: Mode = Mode { races: true, unwritten: true, ..Mode::FAST };

/// Of the largest number: sums in another order; a middle that is rounded to a neighbour; weights of fp8, whose
/// products with the scales are exact here and rounded to bf16 in the reference.
fn tolerance(op: &str, format: Format) -> f32 {
    match (format, op) {
        (Format::F32, _) => 2e-5,
        (Format::Bf16, "gated_mlp" | "experts") => 5e-3,
        (Format::Bf16, _) => 5e-5,
        (Format::Fp8, _) => 8e-3,
    }
}

fn check(op: &str, sizes: Sizes, format: Format, tokens: usize, mode: Mode) {
    check_with(None, op, sizes, format, tokens, mode);
}

/// With kernels of `module` in the place of ours.
fn check_with(module: Option<&Module>, op: &str, sizes: Sizes, format: Format, tokens: usize, mode: Mode) {
    let which: Vec<usize> = (0..tokens).collect();
    let want = run(&mut Reference::new(format.precision()), op, sizes, format, &which);
    let mut b = device(mode, format);
    module.into_iter().for_each(|module| b.device().replace(module));
    let got = run(&mut b, op, sizes, format, &which);
    let largest = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let close = (g - w).abs() <= tolerance(op, format) * largest;
        assert!(close, "{op} {format:?} {tokens} tokens, {sizes:?} [{i}]: {g}, expected {w} ({mode:?})");
    }
}

fn check_all(sizes: Sizes, format: Format, tokens: &[usize]) {
    for op in OPS {
        for &n in tokens {
            check(op, sizes, format, n, CAREFUL);
        }
    }
}

#[test]
fn odd_sizes() {
    for format in [Format::F32, Format::Bf16, Format::Fp8] {
        check_all(ODD, format, &[1, 2, 5, 9, 33, 65]);
    }
    // So many that a warp of the lists' kernel counts twice 32 of them.
    check("experts", ODD, Format::Bf16, 400, CAREFUL);
}

#[test]
fn even_sizes() {
    for format in [Format::F32, Format::Bf16, Format::Fp8] {
        check_all(EVEN, format, &[1, 8, 16, 17, 64, 130]);
    }
}

#[test]
fn long_sums() {
    for format in [Format::Bf16, Format::Fp8] {
        for (op, tokens) in [("linear", 1), ("linear", 65), ("absorb_output", 9), ("gated_mlp", 9)] {
            check(op, LONG, format, tokens, CAREFUL);
        }
    }
    check("experts", LONG, Format::Bf16, 1, CAREFUL);
}

#[test]
fn many_rows() {
    for format in [Format::Bf16, Format::Fp8] {
        for (op, sizes, tokens) in [
            ("linear", TALL, 17),
            ("linear", TALLER, 1),
            ("linear", TALLER, 9),
            ("gated_mlp", TALL, 33),
            ("linear added", TALL, 20),
        ] {
            check(op, sizes, format, tokens, CAREFUL);
        }
    }
}

/// What the GPU's time goes to: the bytes of the weights, read once for all tokens of a tile.
#[test]
fn weights_are_read_once_and_without_conflicts() {
    let sizes = Sizes { hidden: 2048, rows: 160, ..EVEN };
    let unit = |format| if format == Format::Fp8 { 512 } else { 1024 };
    for (format, op, tokens, tiles) in [
        (Format::Bf16, "linear", 1, 1),
        (Format::Bf16, "linear", 8, 1),
        (Format::Fp8, "linear", 16, 1),
        (Format::Bf16, "linear", 17, 1),
        (Format::Fp8, "linear", 33, 2),
        (Format::Bf16, "linear", 128, 1),
        (Format::Bf16, "experts", 8, 1),
    ] {
        let mut b = device(Mode { lanes: true, ..CAREFUL }, format);
        run(&mut b, op, sizes, format, &(0..tokens).collect::<Vec<_>>());
        let counted = b.device().counters();
        // Panels of 16 rows of W, units of 32 columns; each panel has a block of its own (of the wide kernel, eight),
        // which reads x besides: in f32, or rounded by a launch before.
        let (weights, x) = if op == "experts" {
            let (gate_up, down) = (48 / 8 * 64, 2048 / 16 * 2);
            let hit = (0..tokens).flat_map(|t| chosen(t, 5, 2)).collect::<std::collections::HashSet<_>>();
            (
                hit.len() * (gate_up + down) * unit(format),
                2 * tokens * (6 * 2048 * 4 + 128 * 64 * 2 + 2048 * 4),
            )
        } else {
            let blocks = if tokens > 64 { 2 } else { 10 };
            let x = tokens * 2048 * if tokens > 16 { 2 * blocks + 4 } else { 4 * blocks };
            (tiles * 10 * 64 * unit(format), x)
        };
        let more = counted.loaded_bytes as f64 / (weights + x) as f64;
        let say = || format!("{op} {format:?} {tokens} tokens: {more:.3} of the bytes; {counted:?}");
        // The rest is what each thread asks of the step and of the lists.
        let most = if op == "experts" { 1.3 } else { 1.08 };
        assert!((1.0..most).contains(&more), "{}", say());
        assert_eq!(counted.shared_wavefronts, counted.shared_ideal, "{}", say());
        assert!(counted.load_sectors as f64 <= 1.02 * counted.load_sectors_ideal as f64, "{}", say());
    }
}

/// Ids that name no expert add nothing, and nothing is read for them; the others are summed by rising id.
#[test]
fn experts_are_summed_by_id_and_unknown_ones_left_out() {
    for tokens in [1, 3] {
        let step = |b: &mut CudaBackend<Emulator>, ids: &[u32]| {
            let limits = StepLimits {
                tokens,
                rows: tokens,
                outputs: 0,
                vocab_size: 1,
                context_len: 1,
                block_len: 1,
                n_blocks: 4,
            };
            let mla = ODD.mla();
            let rope = Rope { inv_freq: vec![1.0; ROPE / 2], scale: 1.0 };
            let workspace = Workspace {
                limits,
                mla,
                rope,
                hidden: 32,
                widest: 64,
                widest_mlp: 96,
                n_experts: 2,
                top_k: 2,
            };
            b.reserve(workspace).unwrap();
            let zeros = vec![0; tokens];
            let step = Step {
                copies: &[],
                tokens: &zeros,
                positions: &zeros,
                slots: &zeros,
                row_start: &(0..=tokens as u32).collect::<Vec<_>>(),
                kv_len: &vec![1; tokens],
                expanded: &vec![false; tokens],
                tables: &zeros,
                outputs: &[],
            };
            b.begin_step(&step).unwrap();
            let stored = [0, 1, 2, 3].map(|i| Stored::new(Format::Bf16, [32, 32], i));
            let pairs = stored.as_chunks::<2>().0;
            let gate_up: Vec<Parts<'_>> =
                pairs.iter().map(|[g, u]| Parts::GateUp { gate: g.matrix(), up: u.matrix() }).collect();
            let down: Vec<Parts<'_>> = stored[..2].iter().map(|m| m.matrix().into()).collect();
            let (gate_up, down) = (b.pack(&gate_up, Precision::Bf16), b.pack(&down, Precision::Bf16));
            let x = b.upload(&noise(32 * tokens, 5)).unwrap();
            let mut y = b.upload(&noise(32 * tokens, 6)).unwrap();
            let (ids, weights) = (b.ids(ids), b.upload(&vec![1.0; 2 * tokens]).unwrap());
            b.experts(Experts {
                gate_up: &gate_up.unwrap(),
                down: &down.unwrap(),
                x: View::dense(&x, 32),
                ids: &ids,
                weights: &weights,
                top_k: 2,
                out: &mut y,
            })
            .unwrap();
            b.read(&y, 32 * tokens)
        };
        let b = &mut device(CAREFUL, Format::Bf16);
        assert_eq!(step(b, &vec![u32::MAX; 2 * tokens]), noise(32 * tokens, 6));
        let one = step(b, &[2, 1].repeat(tokens));
        assert_ne!(one, noise(32 * tokens, 6));
        assert_eq!(one, step(b, &[1, u32::MAX].repeat(tokens)));
        // To the last bit, and another order has others.
        assert_eq!(step(b, &[1, 0].repeat(tokens)), step(b, &[0, 1].repeat(tokens)));
    }
}

#[test]
fn every_order_of_events() {
    for mode in Mode::all() {
        for op in ["linear", "experts"] {
            for tokens in [3, 18, 66] {
                check(op, EVEN, Format::Bf16, tokens, mode);
            }
            check(op, EVEN, Format::Fp8, 3, mode);
        }
    }
}

/// Rows of `which` tokens.
fn rows_of(values: &[f32], tokens: usize, t: usize) -> &[f32] {
    let width = values.len() / tokens;
    &values[t * width..][..width]
}

/// In a batch of all `tokens`, as among some of them.
fn check_bits(op: &str, sizes: Sizes, format: Format, tokens: usize, some: &[&[usize]]) {
    let all: Vec<usize> = (0..tokens).collect();
    let batch = run(&mut device(Mode::FAST, format), op, sizes, format, &all);
    for some in some {
        let few = run(&mut device(Mode::FAST, format), op, sizes, format, some);
        for (i, &t) in some.iter().enumerate() {
            let (alone, among) = (rows_of(&few, some.len(), i), rows_of(&batch, tokens, t));
            let same = alone.iter().zip(among).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{op} {format:?}: token {t} of {} differs", some.len());
        }
    }
}

#[test]
fn a_token_computes_the_same_bits_alone() {
    let all: Vec<usize> = (0..130).collect();
    let some = [&[0][..], &[77], &[129], &[3, 64, 127, 128], &all[40..57], &all[50..90]];
    for format in [Format::F32, Format::Bf16, Format::Fp8] {
        for op in OPS.into_iter().filter(|op| *op != "lm_head") {
            check_bits(op, ODD, format, 130, &some);
            check_bits(op, EVEN, format, 130, &some);
        }
    }
    for format in [Format::Bf16, Format::Fp8] {
        check_bits("linear", TALL, format, 70, &[&[5], &all[..9], &all[30..60]]);
        check_bits("linear", TALLER, format, 17, &[&[5], &all[..9]]);
    }
}
