//! What kernels may not do, read from their sources.

use std::path::{Path, PathBuf};

/// Outside `dev.h` and the emulator: the device is reached by wrappers alone, memory too.
const FORBIDDEN: [&str; 9] =
    ["asm", "__shared__", "threadIdx", "blockIdx", "blockDim", "gridDim", "__syncthreads", "*p.", "*(p."];

fn kernel_sources() -> Vec<PathBuf> {
    let csrc = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/csrc");
    let paths = std::fs::read_dir(csrc).unwrap().map(|entry| entry.unwrap().path());
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let kernel = name.ends_with(".cu") || name.ends_with(".h");
        kernel && name != "dev.h" && !name.starts_with("sim")
    };
    paths.filter(ours).collect()
}

/// The forbidden word in a line, comments apart.
fn offence(line: &str) -> Option<&'static str> {
    let code = line.split("//").next().unwrap_or_default();
    let includes = code.trim_start().starts_with("#include <").then_some("#include <");
    FORBIDDEN
        .into_iter()
        .find(|text| code.match_indices(text).any(|(at, _)| stands(code, at, text)))
        .or(includes)
}

/// Whether what begins at `at` is that word, not part of a longer one, and a star reads through a pointer: it does unless
/// there is something to multiply before it.
fn stands(code: &str, at: usize, text: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    let before = &code[..at];
    if text.starts_with('*') {
        return !before.trim_end().ends_with(|c| inside(c) || c == ')' || c == ']');
    }
    !before.ends_with(inside) && !code[at + text.len()..].starts_with(inside)
}

#[test]
fn kernels_reach_the_device_by_wrappers_alone() {
    let sources = kernel_sources();
    assert!(!sources.is_empty());
    for path in sources {
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let found = offence(line);
            assert_eq!(found, None, "{}:{}: {line}", path.display(), number + 1);
        }
    }
}

#[test]
fn offences_are_seen() {
    for (line, expected) in [
        ("asm volatile(\"\");", Some("asm")),
        ("int i = threadIdx.x;", Some("threadIdx")),
        ("__shared__ float x[4];", Some("__shared__")),
        ("float x = *p.in;", Some("*p.")),
        ("float x = *(p.in + 1);", Some("*(p.")),
        ("#include <cuda_bf16.h>", Some("#include <")),
        ("int n = 4 * p.n, m = (a)*p.n; // not *p.in", None),
        ("int plasma = 4; // asm", None),
    ] {
        assert_eq!(offence(line), expected, "{line}");
    }
}
