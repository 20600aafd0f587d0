//! Each op of the CUDA backend against the scalar reference, its kernels run on the host by the emulator: odd sizes, f32 and
//! bf16, every order of threads and copies.

#![cfg(feature = "sim")]

mod every_op;

use every_op::Attention::{Expanded, Latent};
use every_op::{ODD, Sizes, StepData, check_draws, run};
use kernels::cuda::sim::{Emulator, Mode};
use kernels::cuda::{About, CudaBackend, Device, Launch, Ptr};
use kernels::*;

fn check(mode: Mode, sizes: Sizes, data: &StepData, precision: Precision, tolerance: f32) {
    check_cached(CacheFormat::Plain, mode, sizes, data, precision, tolerance);
}

fn check_cached(
    cache: CacheFormat,
    mode: Mode,
    sizes: Sizes,
    data: &StepData,
    precision: Precision,
    tolerance: f32,
) {
    let want = run(&mut Reference::new(precision).with_cache(cache), sizes, data, precision);
    let mut cuda = CudaBackend::new(Emulator::new(mode, 90), precision).with_cache(cache);
    let got = run(&mut cuda, sizes, data, precision);
    assert_eq!(got.len(), want.len());
    for ((op, got), (_, want)) in got.iter().zip(&want) {
        assert_eq!(got.len(), want.len(), "{op}");
        let largest = want.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            let error = (g - w).abs() / largest;
            assert!(error <= tolerance, "{op} [{i}] {precision:?} {mode:?}: {g}, expected {w}");
        }
    }
}

fn rows() -> StepData {
    StepData::new(
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
    )
}

#[test]
fn odd_sizes() {
    check(Mode::FAST, ODD, &rows(), Precision::F32, 2e-5);
    // In bf16 the kernels round the softmax weights too, and sums in another order now and then round an intermediate
    // to its neighbour, 2^-8 away.
    check(Mode::FAST, ODD, &rows(), Precision::Bf16, 1.5e-2);
    for precision in [Precision::F32, Precision::Bf16] {
        check_cached(CacheFormat::Fp8, Mode::FAST, ODD, &rows(), precision, 1.5e-2);
    }
}

/// Heads of DeepSeek's and of GLM-4.7-Flash's sizes, for which there are kernels of their own; few of them, and narrow layers.
#[test]
fn real_heads() {
    let data = StepData::new(&[(70, 3, Latent), (64, 66, Expanded), (0, 1, Latent), (130, 7, Expanded)], 64);
    for (nope, v) in [(128, 128), (192, 256)] {
        let mla = MlaDims {
            n_heads: 2,
            kv_lora_rank: 512,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: 64,
            v_head_dim: v,
            // Of sums of so many products, so that softmax is neither flat nor a single key.
            softmax_scale: 0.02,
        };
        let sizes = Sizes { mla, hidden: 256, intermediate: 128, n_experts: 8, top_k: 3 };
        check(Mode::FAST, sizes, &data, Precision::Bf16, 1.5e-2);
        check_cached(CacheFormat::Fp8, Mode::FAST, sizes, &data, Precision::Bf16, 1.5e-2);
    }
}

#[test]
fn a_single_token() {
    for attention in [Latent, Expanded] {
        check(Mode::FAST, ODD, &StepData::new(&[(0, 1, attention)], 64), Precision::F32, 2e-5);
        check(Mode::FAST, ODD, &StepData::new(&[(64, 1, attention)], 1), Precision::Bf16, 1.5e-2);
    }
}

#[test]
fn keys_split_over_blocks_of_threads() {
    let data = StepData::new(&[(1100, 1, Latent), (600, 2, Latent)], 64);
    check(Mode::FAST, ODD, &data, Precision::F32, 5e-5);
}

#[test]
fn only_one_kind_of_attention() {
    for attention in [Latent, Expanded] {
        let data = StepData::new(&[(40, 20, attention), (0, 33, attention)], 16);
        check(Mode::FAST, ODD, &data, Precision::F32, 2e-5);
    }
}

#[test]
fn whatever_order_threads_and_copies_take() {
    let data = StepData::new(&[(30, 3, Latent), (64, 1, Latent), (7, 9, Expanded)], 16);
    for mode in Mode::all() {
        check(mode, ODD, &data, Precision::Bf16, 1.5e-2);
    }
}

#[test]
fn tokens_are_drawn_as_on_the_host() {
    for vocab in [50, 3000] {
        let mut b = CudaBackend::new(Emulator::new(Mode::FAST, 90), Precision::F32);
        assert_eq!(check_draws(&mut b, vocab), Ok(30));
    }
}

/// A device that has no memory for graphs.
struct NoGraphs(Emulator);

impl Device for NoGraphs {
    type Memory = <Emulator as Device>::Memory;
    type Reading = <Emulator as Device>::Reading;
    type Graph = ();

    fn about(&self) -> &About {
        self.0.about()
    }

    fn free_bytes(&self) -> Result<u64> {
        self.0.free_bytes()
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> Result<Self::Memory> {
        self.0.allocate(bytes, what)
    }

    fn address(memory: &Self::Memory) -> Ptr {
        Emulator::address(memory)
    }

    fn bytes(memory: &Self::Memory) -> usize {
        Emulator::bytes(memory)
    }

    fn write(&self, to: &Self::Memory, at: usize, bytes: &[u8]) -> Result<()> {
        self.0.write(to, at, bytes)
    }

    fn read(&self, from: &Self::Memory, at: usize, out: &mut [u8]) -> Result<()> {
        self.0.read(from, at, out)
    }

    fn read_later(&self, from: &Self::Memory, at: usize, len: usize) -> Result<Self::Reading> {
        self.0.read_later(from, at, len)
    }

    fn finish_reading(&self, reading: Self::Reading, out: &mut [u8]) -> Result<()> {
        self.0.finish_reading(reading, out)
    }

    fn run(&self, launches: &[Launch]) -> Result<()> {
        self.0.run(launches)
    }

    fn capture(&self, launches: &[Launch]) -> Result<()> {
        Err(KernelError::Memory { what: "a graph", bytes: launches.len() })
    }

    fn replay(&self, (): &()) -> Result<()> {
        unreachable!("no graph was made")
    }
}

#[test]
fn steps_run_without_memory_for_graphs() {
    let data = StepData::new(&[(30, 3, Latent)], 16);
    let precision = Precision::F32;
    let want = run(&mut CudaBackend::new(Emulator::new(Mode::FAST, 90), precision), ODD, &data, precision);
    let device = NoGraphs(Emulator::new(Mode::FAST, 90));
    assert_eq!(run(&mut CudaBackend::new(device, precision), ODD, &data, precision), want);
}
