//! Each kind of mistake in a kernel (`faults.cu`), and the message that names it.

use crate::probe::{Probe, params};
use kernels::cuda::Device;
use kernels::cuda::sim::mutants::Module;
use kernels::cuda::sim::{Emulator, Mode};
use std::path::Path;

/// Kernel and part of the message.
const FAULTS: [(&str, &str); 54] = [
    ("read_without_barrier", "race: "),
    ("write_after_read_without_barrier", "race: "),
    ("two_writers", "race: writes shared address"),
    ("two_lanes_write", "race: writes shared address"),
    ("two_writers_of_a_half", "race: writes shared address"),
    ("lanes_without_warp_sync", "race: "),
    ("shuffle_orders_nothing", "race: reads shared address"),
    ("matrix_without_warp_sync", "race: reads shared address"),
    ("overwritten_matrix", "race: writes shared address"),
    ("plain_read_of_a_counter", "race: "),
    ("arrival_is_no_wait", "race: "),
    ("copy_not_waited_for", "whose copy by warp"),
    ("copy_one_group_short", "whose copy by warp"),
    ("copy_never_committed", "whose copy by warp"),
    ("copy_left_behind", "1 copies begun by this thread were not waited for"),
    ("copy_seen_without_barrier", "shared address"),
    ("copy_over_what_is_read", "copies to shared address|with no barrier since"),
    ("shared_out_of_range", "4 bytes of shared memory: out of range, at byte 4"),
    ("shared_from_zero", "below smem_base()"),
    ("shared_misaligned", "16 bytes of shared memory: misaligned, at byte"),
    ("global_read_past_end", "4 bytes of global memory: out of range, at byte 1024 of an allocation of 1024"),
    ("global_write_past_end", "4 bytes of global memory: out"),
    ("global_before_begin", "4 bytes of global memory"),
    ("global_misaligned", "8 bytes of global memory: misaligned, at byte"),
    ("global_null", "4 bytes of global memory at 0: outside of all memory"),
    ("blocks_write_the_same", "race: writes byte "),
    ("block_reads_anothers", "of an allocation of 4096 bytes, which another block of this launch writes"),
    ("block_copies_anothers", "of an allocation of 4096 bytes, which another block of this launch writes"),
    ("constant_is_written", "as a constant, but this launch writes it"),
    ("copy_past_end", "16 bytes of global memory: "),
    ("divergent_shuffle", "the warp has diverged: this lane is in a shuffle, lanes"),
    ("half_a_warp_shuffles", "while others wait in a shuffle|of which lanes"),
    ("shuffle_after_return", "while others wait in a shuffle|of which lanes"),
    ("divergent_sum", "are in a shuffle at faults.cu:"),
    ("barrier_for_one_warp", "deadlock: nobody can go on"),
    ("barrier_counts_differ", "barrier 1 is met by|(32 of 64 threads have come)"),
    ("barrier_of_half_a_warp", "a barrier of 48 threads in a block of 64"),
    ("barrier_17", "barrier 17 of 0 to 15"),
    ("barriers_crossed", "(32 of 64 threads have come), faults.cu:"),
    ("waits_for_ever", "waits for global memory that nobody of this block changes"),
    ("mbarrier_not_made", "mbar_wait at shared address 2048, where no mbarrier is"),
    ("mbarrier_not_known_yet", "where no mbarrier is|race: uses the barrier at"),
    (
        "mbarrier_too_many_arrive",
        "more than the 48 arrivals that the mbarrier counts|expects 64 more bytes when the block ends",
    ),
    ("mbarrier_too_few_arrive", "waits for parity 0 of the mbarrier at 2048 (phase 0, 1 arrivals"),
    ("mbarrier_wrong_parity", "shared address|waits for parity 1 of the mbarrier at 2048 (phase 1"),
    ("bulk_not_waited_for", "shared address"),
    ("bulk_fewer_bytes", "0 arrivals and 16 bytes missing"),
    ("bulk_more_bytes", "16 bytes more than the mbarrier expects"),
    ("bulk_left_behind", "bulk copies are under way when the block ends|nobody waited for the bytes"),
    ("bulk_not_fenced", "no mbar_fence since its mbar_init"),
    ("bulk_over_own_writes", "with no fence_async since"),
    ("bulk_misaligned", "16 bytes of shared memory: misaligned"),
    ("bulk_past_end", "16 bytes of global memory: out of range, at byte 1056 of an allocation of 1024"),
    ("bulk_odd_size", "a bulk copy of 60 bytes"),
];

fn faults() -> Module {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/faults.cu");
    Module::of_source(&source).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn each_mistake_is_named_in_each_mode() {
    let module = faults();
    let input = vec![0; 256];
    let mut wrong = Vec::new();
    for (kernel, expected) in FAULTS {
        for mode in Mode::all() {
            let probe = Probe { module: Some(&module), grid: [2, 1, 1], ..Probe::new(kernel, &input, 1024) };
            let message = probe.run(mode).map_or_else(|e| e, |_| "passes".into());
            let named = expected.split('|').any(|text| message.contains(text));
            if !(named && message.starts_with(kernel)) {
                wrong.push(format!("{kernel}, {mode:?}: {message}\n    expected: {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn memory_that_nobody_wrote_is_not_a_number() {
    let module = faults();
    for mode in [Mode::FAST, Mode::all()[0]] {
        let probe = Probe { module: Some(&module), ..Probe::new("shared_never_written", &[], 64) };
        assert_eq!(probe.run(mode).unwrap().0, [2; 64]);
    }
}

#[test]
fn memory_that_nobody_wrote_is_not_read() {
    let emulator = Emulator::new(Mode::all()[0], 90);
    let [from, to] = [(); 2].map(|()| emulator.allocate_unwritten(256).unwrap());
    let params = params(Emulator::address(&from), Emulator::address(&to), 64);
    let run = || emulator.launch("smxx_u32_probe_reverse", [1, 1, 1], 256, &params);
    for written in [0, 4, 252] {
        emulator.write(&from, 0, &vec![0; written]).unwrap();
        let message = run().unwrap_err();
        let expected = "4 bytes of global memory: never written, at byte 252 of an allocation of 256 bytes";
        assert!(message.contains(expected), "{message}");
    }
    emulator.write(&from, 252, &[0; 4]).unwrap();
    assert_eq!(run(), Ok(()));
}

#[test]
fn launches_are_checked() {
    let place =
        |grid, shared_bytes| Probe { grid, shared_bytes, ..Probe::new("smxx_u32_probe_place", &[], 4096) };
    for (probe, expected) in [
        (place([0, 1, 1], 0), "a grid of 0 x 1 x 1"),
        (place([1, 1, 70_000], 0), "a grid of 1 x 1 x 70000"),
        (place([1, 1, 1], 300_000), "300000 bytes of shared memory"),
        (Probe { kernel: "smxx_u32_nothing", ..place([1, 1, 1], 0) }, "no kernel smxx_u32_nothing in csrc"),
    ] {
        let message = probe.run(Mode::FAST).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}
