//! From a checkpoint to logits: `config.json` → [`spec::ModelSpec`], safetensors →
//! [`checkpoint::Checkpoint`], and the forward pass over a backend.
pub mod checkpoint;
pub mod plan;
pub mod problems;
pub mod spec;
pub mod tensors;
