/// Why an operation was refused. Arguments of ops are built by the model, not by users, so any
/// of these is a mistake of ours, caught before unchecked code runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A buffer, weight or index does not fit the shapes beside it.
    #[error("{op}: {what}")]
    Shape { op: &'static str, what: String },
    /// Memory could not be had.
    #[error("cannot allocate {bytes} bytes for {what}")]
    Memory { what: &'static str, bytes: usize },
    /// The device refused or failed; `what` names the kernel and its sizes.
    #[error("{op}: {what}")]
    Device { op: &'static str, what: String },
    /// The device will do nothing more for this process.
    #[error("the device is lost, and the process must be started again: {op}: {what}")]
    Lost { op: &'static str, what: String },
}

pub type Result<T> = std::result::Result<T, KernelError>;

/// `Err(Shape)` unless `holds`; the text is built only on failure.
pub(crate) fn require(holds: bool, op: &'static str, what: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(KernelError::Shape { op, what: what() }) }
}
