//! Operations of an MLA + MoE transformer, behind the [`Backend`] trait.
//!
//! Alone in the workspace, this crate may hold `unsafe` and intrinsics. Each op is a file in `ops/`:
//! its arguments, their check (the only way to a kernel) and a scalar reference; `cpu/` is the fast
//! implementation, `reference` the slow one that it is compared with.

#[cfg(target_endian = "big")]
compile_error!("checkpoints and packed pairs are little-endian, and so must the machine be");

mod backend;
mod cache;
mod cpu;
pub mod cuda;
mod dtype;
mod error;
mod logits;
mod mapped_file;
mod matrix;
mod ops;
mod reference;
mod step;

pub use backend::{Backend, MlaDims, Rope, View, Workspace};
pub use cache::CacheFormat;
pub use cpu::{Cpu, Isa, LatentArena, PackedMatrices};
pub use dtype::{DType, Precision};
pub use error::{KernelError, Result};
pub use mapped_file::MappedFile;
pub use matrix::{BlockScales, Matrix, Parts};
pub use ops::{
    AbsorbOutput, AbsorbQuery, AttendExpanded, AttendLatent, CopyBlocks, Embed, Experts, GatedMlp,
    LatentWrite, Linear, LmHead, RmsNorm, Route, RouteRule, Scoring,
};
pub use reference::Reference;
pub use sampler::{self, DRAWN, Draw, Drawn, Draws};
pub use step::{Step, StepLimits};
