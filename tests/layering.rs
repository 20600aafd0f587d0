//! The walls between crates, as ARCHITECTURE.md draws them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Who may depend on whom among our own crates. An arrow that is not here needs a reason first.
const DRAWING: [(&str, &[&str]); 11] = [
    ("strait", &["engine", "kernels", "model", "server", "text"]),
    ("server", &["dialect", "engine", "grammar", "openai", "text"]),
    ("dialect", &["grammar"]),
    ("grammar", &["engine"]),
    ("model", &["engine", "kernels"]),
    ("engine", &["kv-cache", "sampler"]),
    ("kernels", &["sampler"]),
    ("kv-cache", &[]),
    ("openai", &[]),
    ("sampler", &[]),
    ("text", &[]),
];

/// What crates are kept from, so that the compiler proves what their docs say.
const BARRED: [(&str, &[&str]); 5] = [
    // Knows no JSON, no HTTP, no runtime.
    ("engine", &["serde", "serde_json", "axum", "hyper", "figment", "clap"]),
    ("kv-cache", &["serde", "serde_json", "tokio"]),
    ("kernels", &["serde", "serde_json", "tokio", "safetensors", "tokenizers"]),
    ("openai", &["axum", "hyper", "tokio", "tokenizers"]),
    ("model", &["tokio", "axum", "tokenizers", "libc", "memmap2"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

struct Dependency {
    name: String,
    for_tests: bool,
    features: BTreeSet<String>,
}

/// Dependencies of each of our crates.
fn crates() -> BTreeMap<String, Vec<Dependency>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let args = ["metadata", "--offline", "--format-version", "1", "--no-deps"];
    let output = Command::new(cargo).args(args).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let dependency = |value: &Value| Dependency {
        name: text(&value["name"]),
        for_tests: value["kind"] == "dev",
        features: value["features"].as_array().unwrap().iter().map(text).collect(),
    };
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|p| (text(&p["name"]), p["dependencies"].as_array().unwrap().iter().map(dependency).collect()))
        .collect()
}

#[test]
fn arrows_are_as_drawn() {
    let crates = crates();
    let ours: BTreeSet<&str> = crates.keys().map(String::as_str).collect();
    assert_eq!(ours, DRAWING.iter().map(|(name, _)| *name).collect());
    for (name, drawn) in DRAWING {
        let all = crates[name].iter().filter(|d| !d.for_tests && ours.contains(d.name.as_str()));
        let arrows: BTreeSet<&str> = all.map(|d| d.name.as_str()).collect();
        assert_eq!(arrows, drawn.iter().copied().collect(), "{name}");
    }
}

#[test]
fn crates_cannot_see_what_they_must_not_know() {
    let crates = crates();
    for (name, barred) in BARRED {
        let used: Vec<&str> = crates[name].iter().filter(|d| !d.for_tests).map(|d| d.name.as_str()).collect();
        assert!(barred.iter().all(|barred| !used.contains(barred)), "{name}: {used:?}");
    }
    let tokio = crates["engine"].iter().find(|d| d.name == "tokio").unwrap();
    assert_eq!(tokio.features, BTreeSet::from(["sync".to_owned()]), "the engine has channels and no runtime");
}

/// Rust files of a crate's own code.
fn sources(name: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![root().join("crates").join(name).join("src")];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => dirs.push(path),
                false if path.extension().is_some_and(|end| end == "rs") => files.push(path),
                false => {}
            }
        }
    }
    assert!(!files.is_empty(), "{name} has no code");
    files
}

#[test]
fn only_kernels_may_be_unsafe() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"forbid\""));
    for (name, _) in DRAWING.iter().filter(|(name, _)| *name != "kernels") {
        let manifest = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} does not inherit the lints");
    }
}

#[test]
fn files_and_environment_are_read_at_the_edge() {
    for name in ["engine", "kernels", "kv-cache", "model", "openai", "server", "text"] {
        for file in sources(name) {
            let code = fs::read_to_string(&file).unwrap();
            assert!(!code.contains("env::var"), "{}: reads the environment", file.display());
            // Checkpoints are opened by `model`, mapped by `kernels`, which keeps what it compiles where it is told.
            // The emulator is for tests.
            let may_read =
                ["checkpoint.rs", "mapped_file.rs", "compile/cache.rs", "sim/mutants.rs", "gpu/tests.rs"];
            let may_read = may_read.iter().any(|end| file.ends_with(end));
            assert!(may_read || !code.contains("std::fs"), "{}: reads files", file.display());
        }
    }
}
