//! Feature `cuda-aot`: machine code of each kernels' file for each architecture, by nvcc, so that users need a driver
//! only. nvcc is `$NVCC`, or in `$CUDA_HOME/bin`, or on the PATH.

use super::{SOURCES, run, sources, stem};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Compute capabilities: code runs on its own major version, from its own minor version on.
const ARCHS: [u32; 6] = [80, 86, 89, 90, 100, 120];
/// As NVRTC gets them, in `src/cuda/compile/nvrtc.rs`.
const FLAGS: [&str; 4] = ["-std=c++17", "--fmad=false", "-cubin", "-diag-suppress=177"];

struct Unit {
    source: PathBuf,
    arch: u32,
    cubin: PathBuf,
}

/// `cubins.rs`: the compiler's version, and a list of the cubins beside it.
pub(super) fn build() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let nvcc = nvcc();
    let (major, minor) = version(&nvcc);
    let unit = |source: PathBuf| {
        let out = &out;
        ARCHS.map(move |arch| {
            let cubin = out.join(format!("{}.sm_{arch}.cubin", stem(&source)));
            Unit { source: source.clone(), arch, cubin }
        })
    };
    let units: Vec<Unit> = sources("cu").into_iter().flat_map(unit).collect();
    compile(&nvcc, &units);
    let mut code = format!(
        "pub(super) const NVCC: Option<super::Version> = Some(super::Version {{ major: {major}, minor: {minor} }});\n\
         pub(super) const CUBINS: &[super::Embedded] = &[\n"
    );
    for Unit { source, arch, cubin } in &units {
        let file = stem(source);
        writeln!(
            code,
            "    super::Embedded {{ file: {file:?}, arch: {arch}, cubin: include_bytes!({cubin:?}) }},"
        )
        .expect("a string grows");
    }
    code.push_str("];\n");
    fs::write(out.join("cubins.rs"), code).expect("a writable OUT_DIR");
}

fn compile(nvcc: &Path, units: &[Unit]) {
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(Unit { source, arch, cubin }) = units.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let name = if *arch == 90 { "90a".into() } else { arch.to_string() };
                    let mut command = Command::new(nvcc);
                    command.args(FLAGS).arg("-gencode").arg(format!("arch=compute_{name},code=sm_{name}"));
                    run(command.arg("-I").arg(SOURCES).arg(source).arg("-o").arg(cubin));
                }
            });
        }
    });
}

fn nvcc() -> PathBuf {
    if let Some(path) = env::var_os("NVCC").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let toolkit = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = toolkit.into_iter().chain(env::split_paths(&path));
    let found = folders.map(|folder| folder.join("nvcc")).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "the feature cuda-aot compiles with nvcc, which is not found: install it with \
             `scripts/cuda/toolkit.sh FOLDER` and set NVCC to what that prints, or set CUDA_HOME to a CUDA toolkit"
        )
    })
}

/// `release 13.0` of what `nvcc --version` says.
fn version(nvcc: &Path) -> (u32, u32) {
    let output =
        Command::new(nvcc).arg("--version").output().unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()));
    let said = String::from_utf8_lossy(&output.stdout);
    let number = said.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let parsed = number.and_then(|number| {
        let (major, minor) = number.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    parsed.unwrap_or_else(|| panic!("{} --version tells no version: {said}", nvcc.display()))
}
