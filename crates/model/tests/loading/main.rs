//! Configs, checkpoints and plans: what is read, and what is refused.
mod bad_config;
mod checkpoint;
mod plan;
mod published;
mod tensors;

use std::path::{Path, PathBuf};

/// The config of a published model, by its file in `tests/configs`.
fn config(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs").join(format!("{name}.json"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name)
}

const GOLDENS: [&str; 7] =
    ["v2lite-bf16", "v2-bf16", "v3-f32", "v3-fp8", "v3-tied-f32", "glm4lite-bf16", "kimik2-bf16"];
