//! Each op of the CPU backend against the scalar reference: odd sizes, every instruction set of this
//! machine, one thread and several, f32 and bf16.

mod every_op;

use every_op::Attention::{Expanded, Latent};
use every_op::{ODD, Sizes, StepData, check_draws, run};
use kernels::*;

fn check(sizes: Sizes, data: &StepData, precision: Precision, tolerance: f32) {
    check_cached(CacheFormat::Plain, sizes, data, precision, tolerance);
}

fn check_cached(cache: CacheFormat, sizes: Sizes, data: &StepData, precision: Precision, tolerance: f32) {
    let want = run(&mut Reference::new(precision).with_cache(cache), sizes, data, precision);
    for isa in Isa::all() {
        let mut alone = None;
        for threads in [1, 3] {
            let mut cpu = Cpu::with_isa(threads, precision, isa).with_cache(cache);
            let got = run(&mut cpu, sizes, data, precision);
            for ((op, got), (_, want)) in got.iter().zip(&want) {
                assert_eq!(got.len(), want.len());
                let largest = want.iter().fold(1.0f32, |m, v| m.max(v.abs()));
                for (i, (g, w)) in got.iter().zip(want).enumerate() {
                    let error = (g - w).abs() / largest;
                    assert!(
                        error <= tolerance,
                        "{op} [{i}] on {isa:?} x{threads} {precision:?}: {g}, expected {w}"
                    );
                }
            }
            // However many threads, the same bits.
            let alone = alone.get_or_insert_with(|| got.clone());
            assert!(*alone == got, "{isa:?}: threads change the numbers");
        }
    }
}

#[test]
fn odd_sizes() {
    let data = StepData::new(
        &[
            (70, 9, Expanded),
            (130, 1, Latent),
            (0, 5, Latent),
            (130, 1, Expanded),
            (0, 1, Latent),
            (0, 1, Expanded),
            (3, 26, Latent),
            (3, 12, Expanded),
        ],
        5,
    );
    for cache in [CacheFormat::Plain, CacheFormat::Fp8] {
        check_cached(cache, ODD, &data, Precision::F32, 2e-5);
        // In bf16 the fast kernels round the softmax weights too, and sums in another order now and then round
        // an intermediate to its neighbour, 2^-8 away.
        check_cached(cache, ODD, &data, Precision::Bf16, 1.5e-2);
    }
}

/// Rows of FP8 with several groups, the last one in part, and an odd number of each kind.
#[test]
fn latent_rows_in_fp8() {
    let data = StepData::new(&[(70, 9, Expanded), (600, 2, Latent), (0, 1, Latent), (0, 1, Expanded)], 7);
    for kv_lora_rank in [128, 257] {
        let sizes = Sizes { mla: MlaDims { kv_lora_rank, softmax_scale: 0.02, ..ODD.mla }, ..ODD };
        // A number halfway between two of e4m3 goes either way, as the norm's sum was rounded.
        check_cached(CacheFormat::Fp8, sizes, &data, Precision::F32, 1e-3);
        check_cached(CacheFormat::Fp8, sizes, &data, Precision::Bf16, 1.5e-2);
    }
}

#[test]
fn a_single_token() {
    for attention in [Latent, Expanded] {
        check(ODD, &StepData::new(&[(0, 1, attention)], 64), Precision::F32, 2e-5);
        check(ODD, &StepData::new(&[(64, 1, attention)], 1), Precision::F32, 2e-5);
    }
}

#[test]
fn keys_split_over_threads() {
    // Parts of 512 keys: three, two, and more than three threads have under way at a time.
    let data = StepData::new(&[(1100, 1, Latent), (600, 2, Latent), (13_000, 1, Latent)], 64);
    check(ODD, &data, Precision::F32, 5e-5);
}

#[test]
fn only_one_kind_of_attention() {
    for attention in [Latent, Expanded] {
        let data = StepData::new(&[(40, 20, attention), (0, 33, attention)], 16);
        check(ODD, &data, Precision::F32, 2e-5);
    }
}

#[test]
fn tokens_are_drawn_alike() {
    for vocab in [50, 3000] {
        assert_eq!(check_draws(&mut Cpu::new(3, Precision::F32), vocab), Ok(30));
        assert_eq!(check_draws(&mut Reference::new(Precision::F32), vocab), Ok(30));
    }
}
