//! Mistakes planted in the probes' source.

use crate::probe::{Probe, bits, small_floats};
use kernels::cuda::sim::Mode;
use kernels::cuda::sim::mutants::{Mutant, all_are_found};

const fn probe(from: &'static str, to: &'static str) -> Mutant {
    Mutant { file: "probe.cu", from, to }
}

/// Ten tiles, more than twice the stages: some mistakes show only in the third round.
fn sums_are_right(kernel: &str, races: bool, mutants: &[Mutant]) {
    let words = small_floats(640);
    let expected: Vec<u32> =
        (0..64).map(|t| words.iter().skip(63 - t).step_by(64).sum::<f32>().to_bits()).collect();
    all_are_found(mutants, |module| {
        for mode in Mode::all().map(|mode| Mode { races, ..mode }) {
            let input = bits(&words);
            let (out, _) = Probe { module, ..Probe::new(kernel, &input, 64) }.run(mode)?;
            if out != expected {
                return Err(format!("wrong numbers in {mode:?}"));
            }
        }
        Ok(())
    });
}

#[test]
fn of_a_pipeline_are_found() {
    let mutants = [
        probe("cp_wait<STAGES - 2>", "cp_wait<STAGES - 1>"),
        probe("        bar_sync();\n        begin_copy", "        begin_copy"),
        probe("        begin_copy(p, tile + STAGES - 1)", "        begin_copy(p, tile + STAGES)"),
        probe("    cp_wait<0>();\n", ""),
        probe("(tile % STAGES) + 4 * tid()", "((tile + 1) % STAGES) + 4 * tid()"),
        probe("from < p.n", "true"),
    ];
    sums_are_right("smxx_f32_probe_pipeline", true, &mutants);
    // Where copies land late, and where others go first, numbers are wrong too.
    sums_are_right("smxx_f32_probe_pipeline", false, &mutants);
}

#[test]
fn of_bulk_copies_are_found() {
    let mutants = [
        probe("        mbar_wait(full_at(stage), (u32)(tile / STAGES) & 1);\n", ""),
        probe("(u32)(tile / STAGES) & 1", "(u32)(tile / STAGES + 1) & 1"),
        probe("(u32)(tile / STAGES) & 1", "0"),
        probe("mbar_expect(full_at(stage), 4 * THREADS)", "mbar_expect(full_at(stage), 2 * THREADS)"),
        probe("THREADS * tile, 4 * THREADS,", "THREADS * tile, 2 * THREADS,"),
        probe("if (round > 0) mbar_wait", "if (round > 1) mbar_wait"),
        probe("(u32)(round - 1) & 1", "(u32)round & 1"),
        probe("        mbar_fence();\n    }\n    bar_sync();", "        mbar_fence();\n    }"),
        probe("        mbar_fence();\n", ""),
        probe("mbar_init(empty_at(stage), THREADS)", "mbar_init(empty_at(stage), THREADS / 2)"),
        probe("mbar_init(empty_at(stage), THREADS)", "mbar_init(empty_at(stage), 2 * THREADS)"),
        probe("        mbar_arrive(empty_at(stage));\n", ""),
    ];
    sums_are_right("sm90_f32_probe_bulk", true, &mutants);
}

#[test]
fn of_named_barriers_are_found() {
    let mutants = [
        probe("            if (i > 0) bar_sync_n(2, THREADS);\n", ""),
        probe("            bar_sync_n(1, THREADS);\n", ""),
        probe("bar_sync_n(1, THREADS)", "bar_sync_n(1, THREADS / 2)"),
        probe("bar_arrive_n(1, THREADS)", "bar_arrive_n(3, THREADS)"),
    ];
    let words: Vec<u32> = (0..160).collect();
    let expected: Vec<u32> = (0..32).map(|l| words.iter().skip(31 - l).step_by(32).sum()).collect();
    all_are_found(&mutants, |module| {
        for mode in Mode::all() {
            let probe = Probe { module, n: 5, ..Probe::new("smxx_u32_probe_named", &words, 32) };
            if probe.run(mode)?.0 != expected {
                return Err(format!("wrong numbers in {mode:?}"));
            }
        }
        Ok(())
    });
}
