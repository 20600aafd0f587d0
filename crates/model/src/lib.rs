//! From a checkpoint to logits: `config.json` → [`spec::ModelSpec`], safetensors →
//! [`checkpoint::Checkpoint`], and the forward pass over a backend.
pub mod checkpoint;
pub mod forward;
pub mod plan;
pub mod problems;
mod runner;
pub mod spec;
pub mod tensors;
pub mod weights;
