//! What each wrapper computes.

use crate::probe::{Probe, bits, noise, small_floats};
use half::bf16;
use kernels::cuda::sim::{Mode, declared};

#[test]
fn a_thread_knows_its_place() {
    let expected: Vec<u32> = (0..12 * 64)
        .flat_map(|i| {
            let (tid, block) = (i % 64, i / 64);
            let (x, y, z) = (block % 2, block / 2 % 3, block / 6);
            [tid | (tid % 32) << 8 | (tid / 32) << 16, x | 2 << 8, y | 3 << 8, z]
        })
        .collect();
    Probe { grid: [2, 3, 2], ..Probe::new("smxx_u32_probe_place", &[], 4 * 12 * 64) }.check(&expected);
}

#[test]
fn a_warp_exchanges_words() {
    let words = noise(64);
    let expected: Vec<u32> = (0..64)
        .flat_map(|i| {
            let warp = &words[i / 32 * 32..][..32];
            let lane = i % 32;
            let float = |x: u32| (x & 255) as f32;
            let votes = warp.iter().enumerate().map(|(l, x)| (x & 1) << l).sum();
            let sum: f32 = warp.iter().map(|x| float(*x)).sum();
            let max = warp.iter().map(|x| float(*x)).fold(0.0, f32::max);
            let [swapped, first, sum, max] =
                [float(warp[lane ^ 16]), float(warp[0]), sum, max].map(f32::to_bits);
            [warp[lane ^ 5], warp[words[i] as usize % 32], warp[3], votes, swapped, first, sum, max]
        })
        .collect();
    Probe::new("smxx_u32_probe_warp", &words, 8 * 64).check(&expected);
}

/// bf16 as the device rounds to it: to nearest even, one NaN.
fn nearest(x: f32) -> u32 {
    if x.is_nan() { 0x7fff } else { bf16::from_f32(x).to_bits().into() }
}

/// Ordinary numbers, halves between two bf16, and the ends of the range.
fn floats() -> Vec<f32> {
    let odd = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x0000_0001, 0x007f_ffff, 0x7f7f_ffff];
    let special = [0.0, -0.0, 1.0, -1.0, 0.5, 127.5, -126.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let spread = noise(64).into_iter().map(|x| (x as f32 / u32::MAX as f32 - 0.5) * 40.0);
    let all = special.into_iter().chain(odd.map(f32::from_bits)).chain(spread);
    all.take(64).collect()
}

fn close(x: u32, expected: f64) -> bool {
    let (x, expected) = (f64::from(f32::from_bits(x)), f64::from(expected as f32));
    x == expected || (x.is_nan() && expected.is_nan()) || (x - expected).abs() <= 3e-7 * expected.abs()
}

#[test]
fn functions_of_one_number() {
    let input = floats();
    let (out, _) = Probe::new("smxx_f32_probe_unary", &bits(&input), 8 * 64).run(Mode::FAST).unwrap();
    for (x, out) in input.iter().zip(out.as_chunks::<8>().0) {
        let wide = f64::from(*x);
        let real = [wide.exp2(), wide.log2(), 1.0 / wide, 1.0 / wide.sqrt()];
        for (i, expected) in real.into_iter().enumerate() {
            assert!(
                close(out[i], expected),
                "function {i} of {x}: {} for {expected}",
                f32::from_bits(out[i])
            );
        }
        let exact = [x.to_bits().count_ones(), x.to_bits().leading_zeros(), nearest(*x), nearest(*x) << 16];
        assert_eq!(out[4..], exact, "{x}");
    }
}

#[test]
fn functions_of_two_numbers() {
    let x = floats();
    let y: Vec<f32> = x.iter().rev().copied().collect();
    let input: Vec<u32> = x.iter().zip(&y).flat_map(|(x, y)| [x.to_bits(), y.to_bits()]).collect();
    let (out, _) = Probe::new("smxx_f32_probe_binary", &input, 8 * 64).run(Mode::FAST).unwrap();
    for (i, out) in out.as_chunks::<8>().0.iter().enumerate() {
        let (x, y) = (x[i], y[i]);
        let half = |x: u32, place: u32| f32::from_bits((x >> place) << 16);
        let (low, high) = (half(x.to_bits(), 0), half(x.to_bits(), 16));
        assert!(close(out[0], f64::from(x.mul_add(y, 1.5))), "fma {x} {y}");
        let expected = [
            x.max(y).to_bits(),
            x.min(y).to_bits(),
            high.to_bits(),
            nearest(x) | nearest(y) << 16,
            nearest(low * half(y.to_bits(), 0)) | nearest(high * half(y.to_bits(), 16)) << 16,
            low.to_bits(),
            y.to_bits() << 16,
        ];
        let names = ["max_f", "min_f", "bf16_hi", "pack_bf16", "mul_bf16x2", "bf16_lo", "bf16_f"];
        for ((got, want), name) in out[1..].iter().zip(expected).zip(names) {
            let zeros = name.len() == 5 && x == 0.0 && y == 0.0; // either sign will do
            let nan =
                f32::from_bits(*got).is_nan() && f32::from_bits(want).is_nan() && !name.contains("bf16");
            assert!(*got == want || zeros || nan, "{name} of {x}, {y}: {got:08x} for {want:08x}");
        }
    }
}

#[test]
fn shared_memory_holds_what_was_stored_in_each_width() {
    let words = noise(4 * 64);
    let of = |thread: usize| &words[4 * thread..][..4];
    let expected: Vec<u32> = (0..64)
        .flat_map(|i| {
            let other = of(63 - i);
            let near = of(63 - (i ^ 1));
            let first = [other[0], other[1], other[2] & 0xffff, other[2] >> 16];
            // Written by the thread that mirrors this one, whose own mirror is this one.
            let second = [other[3], other[2], other[0] & 0xffff | other[1] & 0xffff_0000, of(i)[3]];
            first.into_iter().chain(second).chain([near[2], near[3], u32::MAX, 0])
        })
        .collect();
    Probe::new("smxx_u32_probe_shared", &words, 12 * 64).check(&expected);
}

#[test]
fn global_memory_holds_what_was_stored_in_each_width() {
    let words = noise(4 * 64);
    let expected: Vec<u32> = words
        .as_chunks::<4>()
        .0
        .iter()
        .flat_map(|&[a, b, c, d]| [a, b, c, d, c, d, a, b, b, a, a, 11, 12, 13, 14, 15])
        .collect();
    Probe::new("smxx_u32_probe_global", &words, 16 * 64).check(&expected);
}

#[test]
fn atomics_lose_nothing() {
    for mode in Mode::all() {
        let (mut out, _) = Probe::new("smxx_u32_probe_atomics", &[], 64 + 4).run(mode).unwrap();
        out[..64].sort_unstable();
        assert_eq!(out[..64], (0..64).collect::<Vec<_>>(), "each ticket once, {mode:?}");
        assert_eq!((out[64], out[66]), (64, 128), "{mode:?}");
        assert!(out[65] != 0 && out[65] == out[67], "one winner, {mode:?}");
    }
}

#[test]
fn a_thread_may_wait_for_a_release() {
    Probe::new("smxx_u32_probe_release", &[], 3).check(&[1, 17, 18]);
}

/// `probe_pipeline` and `probe_bulk`
fn reversed_sums(words: &[f32]) -> Vec<u32> {
    let sum = |t: usize| words.iter().skip(63 - t).step_by(64).fold(0.0, |sum, x| sum + x).to_bits();
    (0..64).map(sum).collect()
}

#[test]
fn copies_fill_stages() {
    for n in [4, 64, 9 * 64 - 60, 9 * 64] {
        let words = small_floats(n);
        Probe::new("smxx_f32_probe_pipeline", &bits(&words), 64).check(&reversed_sums(&words));
    }
}

#[test]
fn bulk_copies_fill_stages() {
    for tiles in [1, 2, 10] {
        let words = small_floats(64 * tiles);
        Probe::new("sm90_f32_probe_bulk", &bits(&words), 64).check(&reversed_sums(&words));
    }
}

#[test]
fn named_barriers_join_two_warps() {
    let words: Vec<u32> = noise(32 * 5).iter().map(|x| x >> 8).collect();
    let expected: Vec<u32> = (0..32).map(|l| words.iter().skip(31 - l).step_by(32).sum()).collect();
    Probe { n: 5, ..Probe::new("smxx_u32_probe_named", &words, 32) }.check(&expected);
}

#[test]
fn matrices_come_as_fragments() {
    let words = noise(4 * 64);
    let pair = |lo: u32, hi: u32| lo | hi << 16;
    let expected: Vec<u32> = (0..64)
        .flat_map(|thread| {
            let number = |matrix: usize, row: usize, column: usize| {
                let word = words[thread / 32 * 128 + matrix * 32 + row * 4 + column / 2];
                word >> (16 * (column % 2)) & 0xffff
            };
            let (g, c) = (thread % 32 / 4, thread % 4 * 2);
            let straight = (0..4).map(move |m| pair(number(m, g, c), number(m, g, c + 1)));
            let transposed = (0..4).map(move |m| pair(number(m, c, g), number(m, c + 1, g)));
            straight.chain(transposed).collect::<Vec<_>>()
        })
        .collect();
    let probe = Probe::new("smxx_u32_probe_ldsm", &words, 8 * 64);
    probe.check(&expected);
    let (_, counters) = probe.run(Mode::FAST).unwrap();
    assert_eq!(
        (counters.ldsm_wavefronts, counters.ldsm_ideal),
        (16, 16),
        "rows of 16 bytes lie in all banks"
    );
}

#[test]
fn matrices_multiply() {
    let numbers = small_floats(2 * (256 + 128));
    let words: Vec<u32> =
        numbers.as_chunks().0.iter().map(|&[lo, hi]| nearest(lo) | nearest(hi) << 16).collect();
    let expected: Vec<f32> = (0..2 * 128)
        .map(|i| {
            let (a, b) = numbers[i / 128 * 384..][..384].split_at(256);
            let (row, column) = (i % 128 / 8, i % 8);
            1.0 + (0..16).map(|k| a[16 * row + k] * b[8 * k + column]).sum::<f32>()
        })
        .collect();
    let probe = Probe::new("smxx_bf16_probe_mma", &words, 256);
    probe.check(&bits(&expected));
    let (_, counters) = probe.run(Mode::FAST).unwrap();
    assert_eq!((counters.mma, counters.loaded_bytes), (2, 4 * 384), "{counters:?}");
}

#[test]
fn accesses_of_a_warp_are_counted_together() {
    let words = noise(4 * 64);
    let counters = |kernel| {
        let probe = Probe::new(kernel, &words, 16 * 64);
        probe.run(Mode { lanes: true, ..Mode::FAST }).unwrap().1
    };
    // Each thread stores 64 bytes of its own by 15 stores, each of which meets a sector of its own.
    let global = counters("smxx_u32_probe_global");
    assert_eq!((global.stored_bytes, global.store_sectors_ideal), (64 * 64, 64 * 64 / 32), "{global:?}");
    assert_eq!(global.store_sectors, 64 * 15, "{global:?}");
    // Loads are 16 bytes apart, two threads a sector: ten of them, 44 bytes.
    assert_eq!((global.load_sectors, global.load_sectors_ideal), (32 * 10, 64 * 44 / 32), "{global:?}");
    let shared = counters("smxx_u32_probe_shared");
    assert!(shared.shared_wavefronts > shared.shared_ideal, "words 16 bytes apart share banks: {shared:?}");
}

#[test]
fn kernels_describe_their_parameters() {
    let all = declared();
    let probe = all.iter().find(|d| d.name == "smxx_u32_probe_place").unwrap();
    assert_eq!((probe.file, probe.threads, probe.params, probe.params_bytes), ("probe", 64, "ProbeP", 24));
    assert_eq!(probe.fields, [("from", 0, 8), ("to", 8, 8), ("n", 16, 4)]);
}
