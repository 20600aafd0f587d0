//! Operations of an MLA + MoE transformer. Alone in the workspace, this crate may hold `unsafe`.
mod mapped_file;

pub use mapped_file::MappedFile;
