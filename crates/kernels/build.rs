//! Compiles what is not Rust. Feature `sim`: the kernels' sources and the emulator that runs them on the host, by a C++
//! compiler (`$CXX`, else `g++`). Feature `cuda-aot`: the same sources for GPUs, by nvcc. Without them nothing is compiled
//! here. `SIM_SKIP=gemm,rows` leaves out files that do not compile yet.

#[path = "build/cubins.rs"]
mod cubins;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

const SOURCES: &str = "src/cuda/csrc";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed={SOURCES}");
    list_sources();
    if env::var_os("CARGO_FEATURE_SIM").is_some() {
        println!("cargo::rerun-if-env-changed=CXX");
        println!("cargo::rerun-if-env-changed=SIM_SKIP");
        emulator::build();
    }
    if env::var_os("CARGO_FEATURE_CUDA_AOT").is_some() {
        for variable in ["NVCC", "CUDA_HOME", "PATH"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        cubins::build();
    }
}

/// `sources.rs`: the text of each kernels' file, and of each header that they may include, as `(name, text)`.
fn list_sources() {
    let mut code = String::new();
    for (list, extension) in [("MODULES", "cu"), ("HEADERS", "h")] {
        let mut paths = sources(extension);
        paths.retain(|path| !stem(path).starts_with("sim"));
        writeln!(code, "pub(super) const {list}: &[Source] = &[").expect("a string grows");
        for path in paths {
            let name = if extension == "h" { format!("{}.h", stem(&path)) } else { stem(&path).into() };
            writeln!(code, "    Source {{ name: {name:?}, text: include_str!({path:?}) }},")
                .expect("a string grows");
        }
        code.push_str("];\n");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    fs::write(out.join("sources.rs"), code).expect("a writable OUT_DIR");
}

/// Absolute paths of the sources with this extension, in order.
fn sources(extension: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join(SOURCES);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("a readable folder").path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == extension));
    paths.sort();
    paths
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|s| s.to_str()).expect("source names are ASCII")
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    for line in said.lines().filter(|_| output.status.success()) {
        println!("cargo::warning={line}");
    }
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
}

mod emulator {
    use super::*;

    // `src/cuda/sim/mutants.rs` compiles with the same flags: they reach it by `SIM_FLAGS`.
    const FLAGS: &str = "-std=c++17 -O2 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno \
                         -Wall -Wextra -Wno-unknown-pragmas";

    struct Unit {
        source: PathBuf,
        object: PathBuf,
        /// Of a kernels' file: the function that lists them.
        module: Option<String>,
    }

    /// `libstrait_sim_core.a`, the emulator, and `libstrait_sim_kernels.a`, all kernels and the list of their files.
    pub(super) fn build() {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
        let compiler = env::var("CXX").unwrap_or_else(|_| "g++".into());
        let unit = |source: PathBuf, module: Option<String>| {
            let object = out.join(format!("{}.o", stem(&source)));
            Unit { source, object, module }
        };
        let core: Vec<Unit> = sources("cpp").into_iter().map(|source| unit(source, None)).collect();
        let skipped = env::var("SIM_SKIP").unwrap_or_default();
        let mut kernels: Vec<Unit> = sources("cu")
            .into_iter()
            .filter(|source| !skipped.split(',').any(|s| s == stem(source)))
            .map(|source| {
                let module = format!("sim_module_{}", stem(&source));
                unit(source, Some(module))
            })
            .collect();
        kernels.push(unit(list_modules(&kernels, &out), None));
        compile(&compiler, &out, core.iter().chain(&kernels).collect());
        archive(&out.join("libstrait_sim_kernels.a"), &kernels);
        archive(&out.join("libstrait_sim_core.a"), &core);
        println!("cargo::rustc-link-search=native={}", out.display());
        for library in ["static=strait_sim_kernels", "static=strait_sim_core", "stdc++"] {
            println!("cargo::rustc-link-lib={library}");
        }
        println!("cargo::rustc-env=SIM_CXX={compiler}");
        println!("cargo::rustc-env=SIM_FLAGS={FLAGS}");
        println!("cargo::rustc-env=SIM_LIBRARIES={}", out.display());
    }

    /// The twin of `MODULES` in `src/cuda/sim/mutants.rs`.
    fn list_modules(kernels: &[Unit], out: &Path) -> PathBuf {
        let (mut functions, mut modules) = (String::new(), String::new());
        for unit in kernels {
            let (file, list) = (stem(&unit.source), unit.module.as_deref().expect("a kernels' file"));
            functions += &format!("extern \"C\" const sim::Kernel *{list}();\n");
            modules += &format!("    {{\"{file}\", {list}}},\n");
        }
        let text = format!(
            "#include \"dev.h\"\n{functions}\
             extern const sim::Module sim::modules[] = {{\n{modules}    {{nullptr, nullptr}}\n}};\n"
        );
        let path = out.join("sim_modules.cpp");
        write_if_new(&path, &text);
        path
    }

    /// Keeps the file's time where nothing changes.
    fn write_if_new(path: &Path, text: &str) {
        if fs::read_to_string(path).ok().as_deref() != Some(text) {
            fs::write(path, text).expect("a writable OUT_DIR");
        }
    }

    /// Those that are older than what they are made of, as many at a time as cargo allows.
    fn compile(compiler: &str, out: &Path, units: Vec<&Unit>) {
        let command = out.join("sim_command.txt");
        write_if_new(&command, &format!("{compiler} {FLAGS}"));
        let shared = sources("h").iter().chain([&command]).filter_map(|p| modified(p)).max();
        let stale: Vec<&Unit> =
            units.into_iter().filter(|u| modified(&u.object) <= modified(&u.source).max(shared)).collect();
        let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while let Some(unit) = stale.get(next.fetch_add(1, Ordering::Relaxed)) {
                        compile_one(compiler, unit);
                    }
                });
            }
        });
    }

    fn compile_one(compiler: &str, unit: &Unit) {
        let mut command = Command::new(compiler);
        command.args(FLAGS.split_whitespace()).arg("-I").arg(SOURCES);
        if let Some(module) = &unit.module {
            command.arg(format!("-DSIM_MODULE={module}"));
        }
        run(command.args(["-x", "c++", "-c"]).arg(&unit.source).arg("-o").arg(&unit.object));
    }

    fn archive(path: &Path, units: &[Unit]) {
        let _ = fs::remove_file(path); // `ar` would keep what is no longer a source
        run(Command::new("ar").arg("crs").arg(path).args(units.iter().map(|u| &u.object)));
    }
}
