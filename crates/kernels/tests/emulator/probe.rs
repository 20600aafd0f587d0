//! Runs kernels whose parameters are words in, words out and a number (`ProbeP` in `csrc/probe.cu`).

use kernels::cuda::sim::mutants::Module;
use kernels::cuda::sim::{Counters, Emulator, Mode};
use kernels::cuda::{Device, Ptr};

pub(crate) struct Probe<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) grid: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) input: &'a [u32],
    pub(crate) n_out: usize,
    pub(crate) n: i32,
    /// Kernels that are not, or not so, in `csrc`.
    pub(crate) module: Option<&'a Module>,
}

impl<'a> Probe<'a> {
    /// One block; `n` is the number of words.
    pub(crate) fn new(kernel: &'a str, input: &'a [u32], n_out: usize) -> Self {
        let n = input.len() as i32;
        Self { kernel, grid: [1, 1, 1], shared_bytes: 4096, input, n_out, n, module: None }
    }

    pub(crate) fn run(&self, mode: Mode) -> Result<(Vec<u32>, Counters), String> {
        let emulator = Emulator::new(mode, 90);
        if let Some(module) = self.module {
            emulator.replace(module);
        }
        let words: Vec<u8> = self.input.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let from = emulator.allocate_unwritten(words.len()).unwrap();
        let to = emulator.allocate(4 * self.n_out, "out").unwrap();
        emulator.write(&from, 0, &words).unwrap();
        let params = params(Emulator::address(&from), Emulator::address(&to), self.n);
        emulator.launch(self.kernel, self.grid, self.shared_bytes, &params)?;
        let mut out = vec![0; 4 * self.n_out];
        emulator.read(&to, 0, &mut out).unwrap();
        Ok((out.as_chunks().0.iter().map(|b| u32::from_ne_bytes(*b)).collect(), emulator.counters()))
    }

    /// In all modes.
    pub(crate) fn check(&self, expected: &[u32]) {
        for mode in Mode::all() {
            let (out, _) = self.run(mode).unwrap_or_else(|e| panic!("{mode:?}: {e}"));
            let wrong = out.iter().zip(expected).position(|(a, b)| a != b);
            let around = wrong.map(|i| (i, out[i], expected[i]));
            assert_eq!((out.len(), around), (expected.len(), None), "{} in {mode:?}", self.kernel);
        }
    }
}

pub(crate) fn params(input: Ptr, out: Ptr, n: i32) -> Vec<u8> {
    [&input.0.to_ne_bytes()[..], &out.0.to_ne_bytes(), &n.to_ne_bytes(), &[0; 4]].concat()
}

/// Words that look random, the same each time.
pub(crate) fn noise(n: usize) -> Vec<u32> {
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..n).map(|_| next()).collect()
}

/// Whole numbers from -8 to 8 as f32, whose sums are exact.
pub(crate) fn small_floats(n: usize) -> Vec<f32> {
    noise(n).iter().map(|x| (x % 17) as f32 - 8.0).collect()
}

pub(crate) fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|x| x.to_bits()).collect()
}
