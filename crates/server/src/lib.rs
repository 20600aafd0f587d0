//! The HTTP front end: OpenAI requests in, engine requests out, events folded into answers.
//!
//! The caller owns the socket and the stop signal ([`run`]) and loads the model while the port
//! already answers ([`App::set_model`]). Nothing here reads flags, files or the environment.

mod answers;
mod app;
mod auth;
mod blocks;
mod body;
mod chat;
mod completions;
mod connection;
mod constrain;
mod conversation;
mod decode;
mod docs;
mod engine_series;
mod envelope;
mod errors;
mod limit;
mod logprobs;
mod messages;
mod metrics;
mod plan;
mod responses;
mod restrict;
mod routes;
mod serve;
mod speech;
mod sse;
mod timer;
mod tokenize;
mod waiting;
mod watchdog;

pub use app::{App, Build, Defaults, Engine, KvCacheInfo, Options, ServedModel};
pub use auth::ApiKeys;
pub use serve::run;
pub use watchdog::EngineFault;

/// What [`Options::tool_format`] may be.
pub fn tool_formats() -> impl Iterator<Item = &'static str> {
    dialect::Dialect::names()
}
