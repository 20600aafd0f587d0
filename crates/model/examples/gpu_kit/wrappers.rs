//! Step `wrappers`: what each wrapper of `csrc/dev.h` does on this device, by the kernels of `csrc/probe.cu`, against the
//! emulator in this program. Bits are equal but where the hardware approximates.

use crate::Open;
use crate::report::{self, Found, Outcome};
use kernels::cuda::sim::{Emulator, Mode};
use kernels::cuda::{Device, peaks};

const STEP: &str = "wrappers";
const THREADS: usize = peaks::PROBE_THREADS;

struct Probe {
    kernel: &'static str,
    grid: [u32; 3],
    input: Vec<u32>,
    n_out: usize,
    n: i32,
    /// Whether the word at an index is right: `(index, expected, found)`.
    same: fn(usize, u32, u32) -> bool,
}

fn bits(_: usize, want: u32, got: u32) -> bool {
    want == got
}

pub(crate) fn run<D: Device>(open: Open<'_, D>) -> Result<(), String> {
    let device = open()?;
    // Another order of threads and copies than the device's own, if that is an emulator too.
    let modes = Mode::all();
    let emulator = Emulator::new(modes[modes.len() - 1], device.about().arch.max(90));
    for probe in probes() {
        if probe.kernel.starts_with("sm90") && device.about().arch < 90 {
            report::emit(STEP, probe.kernel, Outcome::Absent, Found::says("sm_90 and later"));
            continue;
        }
        report::case(STEP, probe.kernel, Outcome::Passed, || {
            let (want, got) = (launch(&emulator, &probe)?, launch(&device, &probe)?);
            let wrong = (0..want.len()).find(|&i| !(probe.same)(i, want[i], got[i]));
            match wrong {
                Some(i) => Err(format!("word {i}: want {:08x}, got {:08x}", want[i], got[i])),
                None => Ok(Found::default().with("words", want.len() as f64)),
            }
        });
    }
    report::case(STEP, "smxx_u32_probe_atomics", Outcome::Passed, || atomics(&device));
    report::case(STEP, "smxx_bf16_probe_mma", Outcome::Passed, || products(&device));
    Ok(())
}

fn launch<D: Device>(device: &D, probe: &Probe) -> Result<Vec<u32>, String> {
    let said = |e: kernels::KernelError| e.to_string();
    let words: Vec<u8> = probe.input.iter().flat_map(|x| x.to_ne_bytes()).collect();
    let from = device.allocate(words.len().max(4), "in").map_err(said)?;
    let to = device.allocate(4 * probe.n_out, "out").map_err(said)?;
    device.write(&from, 0, &words).map_err(said)?;
    let launch = peaks::probe::<D>(probe.kernel, probe.grid, &from, &to, probe.n);
    device.run(&[launch.ok_or("no such probe")?]).map_err(said)?;
    let mut out = vec![0; 4 * probe.n_out];
    device.read(&to, 0, &mut out).map_err(said)?;
    Ok(out.as_chunks().0.iter().map(|b| u32::from_ne_bytes(*b)).collect())
}

fn probes() -> Vec<Probe> {
    let probe = |kernel, blocks: usize, input: Vec<u32>, each: usize| Probe {
        kernel,
        grid: [blocks as u32, 1, 1],
        n: input.len() as i32,
        input,
        n_out: each * THREADS * blocks,
        same: bits,
    };
    let numbers = floats(16 * THREADS);
    let pairs: Vec<u32> = numbers.iter().zip(numbers.iter().rev()).flat_map(|(x, y)| [*x, *y]).collect();
    let tiles = small_floats(9 * THREADS);
    vec![
        Probe { grid: [2, 3, 2], n_out: 4 * 12 * THREADS, ..probe("smxx_u32_probe_place", 1, vec![], 4) },
        probe("smxx_u32_probe_warp", 16, noise(16 * THREADS), 8),
        Probe { same: unary, ..probe("smxx_f32_probe_unary", 16, numbers, 8) },
        Probe { same: binary, ..probe("smxx_f32_probe_binary", 16, pairs, 8) },
        // Word 10 of 12 is of shared memory that nobody has written.
        Probe {
            same: |i, a, b| a == b || i % 12 == 10,
            ..probe("smxx_u32_probe_shared", 4, noise(16 * THREADS), 12)
        },
        probe("smxx_u32_probe_global", 4, noise(16 * THREADS), 16),
        probe("smxx_u32_probe_reverse", 4, noise(4 * THREADS), 1),
        Probe { n_out: 3, ..probe("smxx_u32_probe_release", 1, vec![], 1) },
        // The last tile is short.
        Probe { n: 9 * THREADS as i32 - 20, ..probe("smxx_f32_probe_pipeline", 1, tiles.clone(), 1) },
        probe("smxx_u32_probe_ldsm", 4, noise(16 * THREADS), 8),
        Probe { n: 5, n_out: 32, ..probe("smxx_u32_probe_named", 1, noise(5 * 32), 1) },
        probe("sm90_f32_probe_bulk", 1, tiles, 1),
    ]
}

/// Words that look random, the same each time.
fn noise(n: usize) -> Vec<u32> {
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..n).map(|_| next()).collect()
}

/// Whole numbers from -8 to 8, whose sums are exact.
fn small_floats(n: usize) -> Vec<u32> {
    noise(n).iter().map(|x| ((x % 17) as f32 - 8.0).to_bits()).collect()
}

/// Ordinary numbers, halves between two bf16, the ends of the range, and any bits at all.
fn floats(n: usize) -> Vec<u32> {
    let odd = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x0000_0001, 0x007f_ffff, 0x7f7f_ffff];
    let special = [0.0, -0.0, 1.0, -1.0, 0.5, 127.5, -126.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let words = noise(n);
    let spread = words[n / 2..].iter().map(|x| ((*x as f32 / u32::MAX as f32 - 0.5) * 40.0).to_bits());
    let all = special.map(f32::to_bits).into_iter().chain(odd).chain(spread).chain(words.iter().copied());
    all.take(n).collect()
}

fn nan(a: f32, b: f32) -> bool {
    a.is_nan() && b.is_nan()
}

/// Words of a thread: 2^x, log2 x, 1/x, 1/sqrt x to 2^-21 of their size (the PTX manual promises 2^-22 or better, the
/// emulator 2^-24), the logarithm's error absolute near 1; then four that are exact.
fn unary(i: usize, want: u32, got: u32) -> bool {
    if i % 8 >= 4 {
        return want == got;
    }
    let (a, b) = (f32::from_bits(want), f32::from_bits(got));
    let least = if i % 8 == 1 { 4.8e-7 } else { 1e-41 };
    a == b || nan(a, b) || (a - b).abs() <= a.abs().max(b.abs()) * 4.8e-7 + least
}

/// The first three are fma, max and min: of NaN and of zeros any will do.
fn binary(i: usize, want: u32, got: u32) -> bool {
    let (a, b) = (f32::from_bits(want), f32::from_bits(got));
    want == got || (i % 8 < 3 && (nan(a, b) || (a == 0.0 && b == 0.0)))
}

/// Who comes first is free; that each has a ticket of its own, and one the lock, is not.
fn atomics<D: Device>(device: &D) -> Result<Found, String> {
    let probe = Probe {
        kernel: "smxx_u32_probe_atomics",
        grid: [1, 1, 1],
        input: vec![],
        n_out: THREADS + 4,
        n: 0,
        same: bits,
    };
    let out = launch(device, &probe)?;
    let (tickets, rest) = out.split_at(THREADS);
    let mut tickets = tickets.to_vec();
    tickets.sort_unstable();
    let n = THREADS as u32;
    let fine = tickets.iter().copied().eq(0..n) && rest[0] == n && rest[2] == 2 * n;
    if fine && rest[1] == rest[3] && (1..=n).contains(&rest[1]) {
        return Ok(Found::default().with("words", out.len() as f64));
    }
    Err(format!("tickets {tickets:?}, then {rest:?}"))
}

/// D = 1 + A B against sums in f64: hardware keeps some bits more than f32 does of each product, and truncates.
fn products<D: Device>(device: &D) -> Result<Found, String> {
    const BOUND: f64 = 1.0 / (1u64 << 18) as f64;
    let half = |word: u32| 0x3c00 | word & 0x83ff;
    let input: Vec<u32> = noise(2 * 192).iter().map(|x| half(x & 0xffff) | half(x >> 16) << 16).collect();
    let probe = Probe {
        kernel: "smxx_bf16_probe_mma",
        grid: [1, 1, 1],
        n: input.len() as i32,
        input,
        n_out: 256,
        same: bits,
    };
    let got = launch(device, &probe)?;
    let number = |warp: usize, i: usize| {
        let word = probe.input[192 * warp + i / 2];
        f64::from(f32::from_bits(if i.is_multiple_of(2) { word << 16 } else { word & 0xffff_0000 }))
    };
    let mut worst = 0.0f64;
    for (i, got) in got.iter().enumerate() {
        let (warp, row, col) = (i / 128, i % 128 / 8, i % 8);
        let terms = (0..16).map(|k| number(warp, 16 * row + k) * number(warp, 256 + 8 * k + col));
        let (sum, size) = terms.fold((1.0, 1.0), |(sum, size), x: f64| (sum + x, size + x.abs()));
        let (got, error) = (f32::from_bits(*got), (f64::from(f32::from_bits(*got)) - sum).abs() / size);
        if error.is_nan() || error > BOUND {
            return Err(format!("[{i}]: want {sum}, got {got}: {error:.1e} of the sum of sizes {size}"));
        }
        worst = worst.max(error);
    }
    Ok(Found::default().with("words", got.len() as f64).with("error", worst))
}
