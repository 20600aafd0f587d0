//! What crosses threads, in one place: `tests/boundary` compiles this crate's modules with a model checker's
//! types in their stead.

pub(crate) use std::sync::{atomic, mpsc};

/// Bounded streams of events, from the engine to whoever waits for them in an async runtime or outside.
pub(crate) mod stream {
    pub(crate) use tokio::sync::mpsc::error::TrySendError;
    pub(crate) use tokio::sync::mpsc::{Receiver, Sender, channel};
}
