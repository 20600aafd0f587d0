//! Log lines go to standard error.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::settings::LogSettings;

pub(crate) fn start(settings: &LogSettings) {
    let levels = tracing_subscriber::registry().with(settings.levels.clone());
    if settings.json {
        levels.with(fmt::layer().json().flatten_event(true).with_writer(stderr)).init();
    } else {
        let text = fmt::layer().with_target(false).with_ansi(stderr().is_terminal());
        levels.with(text.with_writer(stderr)).init();
    }
}

/// Only what went wrong: for programs whose output is an answer.
pub(crate) fn quiet() -> LogSettings {
    LogSettings { json: false, levels: Targets::new().with_default(LevelFilter::WARN) }
}
