//! Each wrapper of `csrc/dev.h` on the emulator, against plain arithmetic (`csrc/probe.cu`).

use kernels::cuda::sim::{Emulator, Mode};
use kernels::cuda::{Device, Ptr};

/// Twin of `ProbeP`.
fn params(input: Ptr, out: Ptr, n: i32) -> Vec<u8> {
    [&input.0.to_ne_bytes()[..], &out.0.to_ne_bytes(), &n.to_ne_bytes(), &[0; 4]].concat()
}

/// What `kernel` makes of `input`.
fn run(mode: Mode, kernel: &str, blocks: u32, input: &[u32], n_out: usize) -> Result<Vec<u32>, String> {
    let emulator = Emulator::new(mode, 90);
    let bytes: Vec<u8> = input.iter().flat_map(|x| x.to_ne_bytes()).collect();
    let from = emulator.allocate_unwritten(bytes.len()).unwrap();
    let to = emulator.allocate_unwritten(4 * n_out).unwrap();
    emulator.write(&from, 0, &bytes).unwrap();
    let params = params(Emulator::address(&from), Emulator::address(&to), input.len() as i32);
    emulator.launch(kernel, [blocks, 1, 1], 1024, &params)?;
    let mut out = vec![0; 4 * n_out];
    emulator.read(&to, 0, &mut out).unwrap();
    Ok(out.as_chunks().0.iter().map(|b| u32::from_ne_bytes(*b)).collect())
}

#[test]
fn warps_sum_and_blocks_reverse() {
    let input: Vec<u32> = (0..256).map(|i| (i as f32).to_bits()).collect();
    let sums: Vec<f32> = (0..256).map(|i| (i / 32 * 32..i / 32 * 32 + 32).sum::<usize>() as f32).collect();
    for mode in Mode::all() {
        let out = run(mode, "smxx_f32_probe_warp_sum", 4, &input, 256).unwrap();
        assert_eq!(out.iter().map(|x| f32::from_bits(*x)).collect::<Vec<_>>(), sums, "{mode:?}");
        let out = run(mode, "smxx_f32_probe_reverse", 2, &input, 256).unwrap();
        let expected: Vec<u32> = (0..256).map(|i| input[i / 128 * 128 + 127 - i % 128]).collect();
        assert_eq!(out, expected, "{mode:?}");
    }
}

#[test]
fn mutants_are_found() {
    use kernels::cuda::sim::mutants::{Mutant, all_are_found};
    let m = |from, to| Mutant { file: "probe.cu", from, to };
    let input: Vec<u32> = (0..256).collect();
    let _ = &input;
    all_are_found(&[m("    bar_sync();\n    stg_f", "    stg_f"), m("cp_wait<0>", "cp_wait<1>")], |plant| {
        for mode in Mode::all() {
            let mut emulator = Emulator::new(mode, 90);
            plant(&mut emulator);
            let from = emulator.allocate(1024, "in").unwrap();
            let to = emulator.allocate(1024, "out").unwrap();
            let params = params(Emulator::address(&from), Emulator::address(&to), 256);
            emulator.launch("smxx_f32_probe_reverse", [2, 1, 1], 512, &params)?;
        }
        Ok(())
    });
}
