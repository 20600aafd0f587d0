//! A [`Gpu`] under a driver without one: `tests/fake_driver.cpp`, which does everything as late as a GPU may, and counts
//! what a driver would not forgive.

use super::*;
use crate::cuda::device::{ParamBytes, Params};
use libloading::Library;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

crate::cuda::device::params! {
    /// Of all kernels of the fake: `to[i] = from[i] + blocks`, for `n` bytes.
    struct ProbeP { from: Ptr, to: Ptr, n: i32 }
}

static ADD: Kernel =
    Kernel { name: "smxx_u32_probe_reverse", file: "probe", threads: 64, shared_bytes_max: 100 << 10 };
static HOPPER: Kernel = Kernel { name: "sm90_f32_probe_bulk", ..ADD };
static WIDE: Kernel = Kernel { name: "smxx_u32_probe_warp", threads: 128, ..ADD };
static GONE: Kernel = Kernel { name: "smxx_f32_probe_gone", ..ADD };

/// Larger than the slots of the staging together.
const LARGE: usize = 9 << 20;

struct Fake {
    faults: unsafe extern "C" fn() -> i32,
    paths: CodePaths,
}

/// Loaded once: from then on its names are the libraries that are found.
fn fake() -> &'static Fake {
    static FAKE: OnceLock<Fake> = OnceLock::new();
    FAKE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap().keep();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_driver.cpp");
        let build = |library: &Path, soname: &str| {
            let mut compiler = Command::new(env!("SIM_CXX"));
            compiler.args(["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]);
            compiler.arg(format!("-Wl,-soname,{soname}")).arg(&source).arg("-o").arg(library);
            assert!(compiler.status().unwrap().success());
        };
        std::fs::create_dir(folder.join("lib")).unwrap();
        build(&folder.join("lib/libnvrtc.so.13"), "libnvrtc.so.13");
        let driver = folder.join("libcuda.so");
        build(&driver, "libcuda.so");
        // SAFETY: the fake's own; never unloaded.
        let library = std::mem::ManuallyDrop::new(unsafe { Library::new(&driver) }.unwrap());
        // SAFETY: the type is the source's.
        let faults = *unsafe { library.get(b"fake_faults") }.unwrap();
        Fake { faults, paths: CodePaths { cache: None, toolkits: vec![folder] } }
    })
}

/// One test at a time: the fake counts faults of all together.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(ordinal: usize, kernels: &[&'static Kernel]) -> std::result::Result<Gpu, NoGpu> {
    Gpu::open(ordinal, kernels, &fake().paths)
}

fn assert_no_fault() {
    // SAFETY: takes nothing.
    assert_eq!(unsafe { (fake().faults)() }, 0);
}

fn launch(from: &Memory, to: &Memory, n: i32, blocks: u32) -> Launch {
    let params = ProbeP { from: Gpu::address(from), to: Gpu::address(to), n }.bytes();
    Launch { kernel: &ADD, grid: [blocks, 1, 1], shared_bytes: 0, params }
}

fn read(gpu: &Gpu, memory: &Memory, at: usize, len: usize) -> Vec<u8> {
    let mut out = vec![0xaa; len];
    gpu.read(memory, at, &mut out).unwrap();
    out
}

#[test]
fn bytes_come_back_in_any_size_and_order() {
    let _alone = alone();
    let gpu = open(0, &[&ADD]).unwrap();
    assert_eq!((gpu.about().arch, gpu.about().name.as_str()), (90, "Fake GPU 0"));
    let memory = gpu.allocate(LARGE, "a test").unwrap();
    assert!(Gpu::address(&memory).0.is_multiple_of(256) && Gpu::bytes(&memory) == LARGE);
    assert!(read(&gpu, &memory, 0, LARGE).iter().all(|byte| *byte == 0));
    let bytes: Vec<u8> = (0..LARGE).map(|i| (i % 251) as u8).collect();
    gpu.write(&memory, 0, &bytes).unwrap();
    assert!(read(&gpu, &memory, 0, LARGE) == bytes);
    for (at, len) in [(0, 0), (LARGE, 0), (1, 1), (LARGE - 3, 3), (5, (4 << 20) + 1), (3, 8 << 20)] {
        assert!(read(&gpu, &memory, at, len) == bytes[at..at + len], "{len} at {at}");
    }
    // More writes than slots before anything runs, and each source is free at once.
    for i in 0..7 {
        let mut source = vec![i; 3];
        gpu.write(&memory, 3 * usize::from(i), &source).unwrap();
        source.fill(0xee);
    }
    let expected: Vec<u8> = (0..21).map(|i| i / 3).collect();
    assert_eq!(read(&gpu, &memory, 0, 21), expected);
    for (at, len) in [(LARGE, 1), (usize::MAX, 2), (1, LARGE)] {
        let refused = gpu.write(&memory, at, &vec![0; len]).unwrap_err();
        assert!(matches!(refused, KernelError::Shape { op: "write", .. }), "{refused}");
        assert!(gpu.read(&memory, at, &mut vec![0; len]).is_err());
    }
    drop((memory, gpu));
    assert_no_fault();
}

/// What was there when the read began, whatever is launched then; in any order, and the memory of the first serves again.
#[test]
fn a_later_read_sees_what_was_launched_before_it() {
    let _alone = alone();
    let gpu = open(0, &[&ADD]).unwrap();
    let memory = gpu.allocate(200, "a test").unwrap();
    gpu.write(&memory, 0, &[7; 200]).unwrap();
    for round in 0..3 {
        let begin = |len: usize| {
            let reading = gpu.read_later(&memory, 3, len).unwrap();
            gpu.run(&[launch(&memory, &memory, 200, 1)]).unwrap();
            reading
        };
        let (first, second, third) = (begin(40), begin(100), begin(1));
        let finish = |reading, len: usize, expected: u8| {
            let mut out = vec![0xaa; len];
            gpu.finish_reading(reading, &mut out).unwrap();
            assert_eq!(out, vec![expected; len]);
        };
        finish(second, 100, 8 + 3 * round);
        finish(first, 40, 7 + 3 * round);
        finish(third, 1, 9 + 3 * round);
    }
    assert!(gpu.read_later(&memory, 150, 51).is_err());
    drop(gpu.read_later(&memory, 0, 200).unwrap()); // nobody waits for it
    drop((memory, gpu));
    assert_no_fault();
}

#[test]
fn launches_run_in_order_and_graphs_as_often_as_asked() {
    let _alone = alone();
    for stepwise in [false, true] {
        let gpu = open(0, &[&ADD, &HOPPER]).unwrap();
        let gpu = if stepwise { gpu.stepwise() } else { gpu };
        let [a, b] = [gpu.allocate(100, "a").unwrap(), gpu.allocate(100, "b").unwrap()];
        gpu.write(&a, 0, &[1; 100]).unwrap();
        gpu.run(&[launch(&a, &b, 100, 2), launch(&b, &a, 50, 4)]).unwrap();
        gpu.write(&b, 99, &[9]).unwrap();
        assert_eq!(read(&gpu, &a, 49, 2), [7, 1]);
        assert_eq!(read(&gpu, &b, 98, 2), [3, 9]);
        let graph = gpu.capture(&[launch(&a, &a, 100, 1), launch(&a, &b, 100, 1)]).unwrap();
        assert_eq!(read(&gpu, &a, 0, 1), [7], "capturing runs nothing");
        for _ in 0..3 {
            gpu.replay(&graph).unwrap();
        }
        assert_eq!((read(&gpu, &a, 0, 1), read(&gpu, &b, 0, 1)), (vec![10], vec![11]));
        gpu.run(&[]).unwrap();
        gpu.replay(&gpu.capture(&[]).unwrap()).unwrap();
        drop((graph, a, b, gpu));
        assert_no_fault();
    }
}

#[test]
fn whatever_is_let_go_of_first_waits_for_the_work_that_needs_it() {
    let _alone = alone();
    for memory_first in [true, false] {
        let gpu = open(0, &[&ADD]).unwrap();
        let memory = gpu.allocate(100, "a test").unwrap();
        gpu.run(&[launch(&memory, &memory, 100, 1)]).unwrap();
        if memory_first {
            drop(memory);
            drop(gpu);
        } else {
            drop(gpu);
            drop(memory);
        }
        assert_no_fault();
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_size() {
    let _alone = alone();
    let gpu = open(0, &[&ADD, &HOPPER]).unwrap();
    let memory = gpu.allocate(8, "a test").unwrap();
    let fine = launch(&memory, &memory, 8, 1);
    for (wrong, expected) in [
        (Launch { params: ParamBytes::zeros(32), ..fine }, "parameters of 32 B, its source has 24 B"),
        (Launch { shared_bytes: 101 << 10, ..fine }, "103424 B of shared memory, at most 102400 B"),
        (Launch { grid: [1, 65_536, 1], ..fine }, "a grid of [1, 65536, 1]"),
        (Launch { grid: [0, 1, 1], ..fine }, "a grid of [0, 1, 1]"),
        (Launch { kernel: &WIDE, ..fine }, "no such kernel"),
    ] {
        for refused in [gpu.run(&[fine, wrong]), gpu.capture(&[fine, wrong]).map(|_| ())] {
            let said = refused.unwrap_err().to_string();
            assert!(said.starts_with(wrong.kernel.name) && said.contains(expected), "{said}");
        }
    }
    // A capture that failed is over.
    gpu.run(&[Launch { shared_bytes: 100 << 10, ..fine }]).unwrap();
    assert_eq!(read(&gpu, &memory, 0, 2), [6, 6]);
    let error = gpu.allocate(2 << 30, "the latent cache").err().unwrap();
    assert_eq!(error.to_string(), "cannot allocate 2147483648 bytes for the latent cache");
    drop((memory, gpu));
    assert_no_fault();
}

#[test]
fn a_kernel_that_fails_is_named_when_stepping_and_heard_of_when_not() {
    let _alone = alone();
    let gpu = open(0, &[&ADD]).unwrap();
    let memory = gpu.allocate(8, "a test").unwrap();
    let failing = launch(&memory, &memory, -1, 3);
    gpu.run(&[failing]).unwrap();
    let said = gpu.read(&memory, 0, &mut [0; 8]).unwrap_err().to_string();
    assert!(said.contains("8 B, or a kernel before: unspecified launch failure"), "{said}");
    let gpu = open(0, &[&ADD]).unwrap().stepwise();
    let said = gpu.run(&[failing]).unwrap_err().to_string();
    let expected = "smxx_u32_probe_reverse: grid [3, 1, 1] of 64 threads, 0 B of shared memory: unspecified";
    assert!(said.contains(expected), "{said}");
}

/// After such an error nothing works any more, and each call says so. Other errors pass.
#[test]
fn a_lost_gpu_is_told_from_a_call_that_fails() {
    let _alone = alone();
    for (n, words) in [(-1, "unspecified launch failure"), (-2, "an illegal memory access")] {
        let gpu = open(0, &[&ADD]).unwrap();
        let memory = gpu.allocate(8, "a test").unwrap();
        let graph = gpu.capture(&[launch(&memory, &memory, 8, 1)]).unwrap();
        gpu.run(&[launch(&memory, &memory, n, 1)]).unwrap();
        let after = [
            gpu.read(&memory, 0, &mut [0; 8]),
            gpu.write(&memory, 0, &[0; 8]),
            gpu.run(&[launch(&memory, &memory, 8, 1)]),
            gpu.replay(&graph),
        ];
        for lost in after {
            let lost = lost.unwrap_err();
            assert!(matches!(lost, KernelError::Lost { .. }) && lost.to_string().contains(words), "{lost}");
        }
    }
    use sys::CUresult as E;
    for passes in [E::CUDA_ERROR_OUT_OF_MEMORY, E::CUDA_ERROR_INVALID_VALUE, E::CUDA_ERROR_NOT_READY] {
        let error = failed("run", "", DriverError(passes));
        assert!(matches!(error, KernelError::Device { .. }), "{error}");
    }
}

#[test]
fn kernels_are_found_at_start_or_named() {
    let _alone = alone();
    for (kernel, expected) in [(&GONE, "smxx_f32_probe_gone"), (&WIDE, "smxx_u32_probe_warp")] {
        let error = open(0, &[&ADD, kernel]).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains("Fake GPU 0"), "{error}");
    }
    let error = open(1, &[&ADD]).err().unwrap().to_string();
    assert!(error.contains("GPU 1 (Fake GPU 1) has compute capability 7.0"), "{error}");
    let error = open(2, &[&ADD]).err().unwrap();
    assert_eq!(error, NoGpu::Ordinal { ordinal: 2, count: 2 });
    let free = |gpu: &Gpu| gpu.free_bytes().unwrap();
    let gpu = open(0, &[]).unwrap();
    assert!(free(&gpu) <= 1 << 30 && gpu.code().is_empty() && gpu.driver().major == 13);
}
