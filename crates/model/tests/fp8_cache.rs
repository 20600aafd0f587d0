//! A latent cache in FP8: the backends agree on it, company and pieces change no bit, and what it costs in accuracy.

mod golden;

use golden::{Chunks, Golden, Nearness, Shape, WHOLE, WHOLE_EXPANDED, largest_error, run};
#[cfg(feature = "sim")]
use kernels::cuda::{
    CudaBackend,
    sim::{Emulator, Mode},
};
use kernels::{Backend, CacheFormat, Cpu, Precision, Reference};

const SHAPE: Shape = Shape { step_tokens: 450, block_len: 64 };
const FP8: CacheFormat = CacheFormat::Fp8;

fn cpu(precision: Precision) -> Cpu {
    Cpu::new(2, precision).with_cache(FP8)
}

#[cfg(feature = "sim")]
fn emulated(precision: Precision) -> CudaBackend<Emulator> {
    CudaBackend::new(Emulator::new(Mode::FAST, 90), precision).with_cache(FP8)
}

fn sequences(golden: &Golden) -> Vec<Vec<u32>> {
    (0..3).map(|p| golden.ids(p)[..golden.ids(p).len().min(70)].to_vec()).collect()
}

fn logits<B: Backend>(golden: &Golden, backend: B, chunks: Chunks) -> Vec<f32> {
    let mut model = golden.model(backend, Precision::F32, SHAPE);
    run(&mut model, &sequences(golden), chunks).concat()
}

/// As the scalar definition gives them, but for numbers that lie between two of e4m3 and go either way as the norm before
/// them was rounded.
#[test]
fn backends_agree() {
    for golden in Golden::all() {
        for chunks in [WHOLE_EXPANDED, Chunks { len: 33, expanded: false }] {
            let want = logits(&golden, Reference::new(Precision::F32).with_cache(FP8), chunks);
            let check = |device, got: &[f32]| {
                let error = largest_error(got, &want);
                println!("{} {device} {chunks:?}: {error:.1e}", golden.name);
                assert!(error < 2e-2, "{} {device} {chunks:?}: {error}", golden.name);
            };
            check("cpu", &logits(&golden, cpu(Precision::F32), chunks));
            #[cfg(feature = "sim")]
            check("emulator", &logits(&golden, emulated(Precision::F32), chunks));
        }
    }
}

fn company_and_pieces_change_no_bit<B: Backend>(backend: impl Fn() -> B) {
    for name in ["v2-bf16", "v3-fp8"] {
        let golden = Golden::open(name);
        let all = sequences(&golden);
        let logits = |sequences: &[Vec<u32>], chunks: Chunks| {
            let mut model =
                golden.model(backend(), Precision::Bf16, Shape { step_tokens: 300, block_len: 64 });
            run(&mut model, sequences, chunks)
        };
        for expanded in [false, true] {
            let whole = logits(&all, Chunks { len: 400, expanded });
            for len in [1, 33] {
                assert!(
                    logits(&all, Chunks { len, expanded }) == whole,
                    "{name}: pieces of {len}, {expanded}"
                );
            }
            for (alone, together) in all.iter().zip(&whole) {
                let alone = logits(std::slice::from_ref(alone), Chunks { len: 400, expanded });
                assert!(alone[0] == *together, "{name}: alone, expanded: {expanded}");
            }
        }
    }
}

#[test]
fn on_the_cpu_company_and_pieces_change_no_bit() {
    company_and_pieces_change_no_bit(|| cpu(Precision::Bf16));
}

#[cfg(feature = "sim")]
#[test]
fn on_the_emulator_company_and_pieces_change_no_bit() {
    company_and_pieces_change_no_bit(|| emulated(Precision::Bf16));
}

/// What the option costs in accuracy, beside what bf16 costs: docs/kv-cache.md has the figures. The reference checkpoints
/// have small latents of random weights, of which one number in another place of e4m3 may choose another expert.
#[test]
fn what_it_costs() {
    for golden in Golden::all() {
        let rms = |x: &[f32]| (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
        let want = [golden.f32s("prompt0.logits"), golden.f32s("prompt1.logits")].concat();
        let error = |precision, cache| {
            let backend = Cpu::new(2, precision).with_cache(cache);
            let mut model = golden.model(backend, precision, SHAPE);
            let got = run(&mut model, &[golden.ids(0), golden.ids(1)], WHOLE).concat();
            rms(&got.iter().zip(&want).map(|(g, w)| g - w).collect::<Vec<_>>()) / rms(&want)
        };
        let fp8 = error(Precision::F32, FP8);
        let bf16 = error(Precision::Bf16, CacheFormat::Plain);
        let both = error(Precision::Bf16, FP8);
        println!(
            "{}: errors of logits (rms, of 1): cache in fp8 {fp8:.4}, all in bf16 {bf16:.4}, both {both:.4}",
            golden.name
        );
        assert!(fp8 > 1e-4, "{}: the cache is not in FP8", golden.name);
        assert!(fp8 < 0.25, "{}: {fp8}", golden.name);
        let in_bf16 = |cache| {
            let backend = Cpu::new(2, Precision::Bf16).with_cache(cache);
            Nearness::of(&golden, || golden.model(backend, Precision::Bf16, SHAPE))
        };
        let Some(near) = in_bf16(FP8) else { continue };
        println!("{}: {near:?}, with a cache in bf16 {:?}", golden.name, in_bf16(CacheFormat::Plain));
        assert!(near.median < 0.3 && near.p90 < 1.0 && near.same > 0.85, "{}: {near:?}", golden.name);
    }
}
