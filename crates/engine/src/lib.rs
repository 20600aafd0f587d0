//! Continuous batching: requests in, events out, one thread that owns the model.
pub mod request;
pub mod runner;
