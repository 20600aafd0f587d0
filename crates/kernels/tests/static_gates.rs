//! What the text of a kernel may hold: the device is reached through `dev.h` alone, so that the emulator sees all of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// CUDA's own words, each of which has a wrapper (`#if SM90` for the architecture) or is not wanted.
const BARRED: [&str; 17] = [
    "asm",
    "threadIdx",
    "blockIdx",
    "blockDim",
    "gridDim",
    "__shared__",
    "__device__",
    "__global__",
    "__constant__",
    "__restrict__",
    "__syncthreads",
    "__syncwarp",
    "__ldg",
    "__CUDA_ARCH__",
    "__CUDACC__",
    "atomicAdd",
    "goto",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/csrc")
}

/// Kernels' files and our own headers, but for the two halves of the device.
fn files() -> Vec<(String, String)> {
    let names = folder().read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let ours = |name: &String| {
        (name.ends_with(".cu") || name.ends_with(".h")) && name != "dev.h" && !name.starts_with("sim")
    };
    let mut files: Vec<_> = names
        .filter(ours)
        .map(|name| (name.clone(), fs::read_to_string(folder().join(name)).unwrap()))
        .collect();
    files.sort();
    files
}

/// Lines without their comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split("//").next().unwrap_or_default().trim_end())
}

/// What is wrong with a line.
fn wrong_with(line: &str, headers: &BTreeSet<String>) -> Option<String> {
    if let Some(include) = line.strip_prefix("#include") {
        let name = include.trim().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let known = name.is_some_and(|name| headers.contains(name) && !name.starts_with("sim"));
        return (!known).then(|| format!("includes {include}: our own headers only"));
    }
    let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    if let Some(word) = words.find(|word| BARRED.contains(word)) {
        return Some(format!("{word}: there is a wrapper in dev.h, or there should be"));
    }
    // An element of an array that a parameter points to.
    let mut rest = line;
    while let Some(at) = rest.find("p.") {
        let is_param = !rest[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.');
        rest = &rest[at + 2..];
        let field = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if is_param && field.starts_with('[') {
            return Some(
                "reads a parameter's memory by itself: ldg_* sees the address, so that it is checked".into(),
            );
        }
    }
    None
}

#[test]
fn kernels_reach_the_device_by_its_header_alone() {
    let headers: BTreeSet<String> = files()
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name.ends_with(".h"))
        .chain(["dev.h".into()])
        .collect();
    for (name, text) in files() {
        for (number, line) in code(&text).enumerate() {
            if let Some(wrong) = wrong_with(line, &headers) {
                panic!("{name}:{}: {wrong}", number + 1);
            }
        }
    }
    // The test sees what it is for.
    for (line, seen) in [
        ("    asm volatile(\"x\");", true),
        ("    x = threadIdx.x;", true),
        ("    __shared__ float x[4];", true),
        ("#include <cuda_bf16.h>", true),
        ("#include \"sim.h\"", true),
        ("#include \"dev.h\"", false),
        ("    y = p.w[3];", true),
        ("    y = step.w[3] + p.n * x[2];", false),
        ("    float wasm = 1;", false),
    ] {
        assert_eq!(wrong_with(line, &headers).is_some(), seen, "{line}");
    }
}

#[test]
fn names_are_addresses() {
    let mut all = BTreeSet::new();
    for (file, text) in files() {
        for name in code(&text).filter_map(|line| line.strip_prefix("KERNEL(")?.split(',').nth(2)) {
            let name = name.trim();
            let parts: Vec<&str> = name.splitn(3, '_').collect();
            let fine = matches!(parts[..], ["smxx" | "sm80" | "sm89" | "sm90", "bf16" | "f32" | "u32" | "fp8", op] if !op.is_empty());
            // Names that a macro makes are checked where they are made, by the emulator's list.
            assert!(fine || name.contains('#') || !name.starts_with("sm"), "{file}: {name}");
            assert!(all.insert(name.to_owned()) || !name.starts_with("sm"), "{file}: {name} is there twice");
        }
    }
    assert!(!all.is_empty());
}
