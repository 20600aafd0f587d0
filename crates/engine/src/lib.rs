//! Continuous batching: requests in, events out, one thread that owns the model.
//!
//! [`start`] puts a [`runner::ModelRunner`] on a thread of its own. An [`EngineHandle`] submits a
//! [`request::Request`] without waiting and gets [`Events`]; dropping them cancels the request.
//! The loop that does the work is [`Engine::step`]: retire, plan, launch, collect, commit.
//!
//! Absent on purpose: text, JSON, an async runtime, a clock, and the model itself.
mod budget;
mod counters;
mod engine;
mod flight;
pub mod grammar;
mod handle;
mod head;
mod policy;
mod queue;
mod reply;
pub mod request;
pub mod runner;
mod sampling;
mod scheduler;
mod sequence;
mod sync;
pub mod testing;

pub use counters::{STEP_TOKENS_BOUNDS, Snapshot};
pub use engine::Engine;
pub use handle::{Busy, EngineHandle, Inbox, Options, connect, start};
pub use policy::Policy;
pub use reply::Events;
