//! Bounds on what a client's grammar can cost.

use std::time::Duration;

use llguidance::api::ParserLimits;

/// All are settings of the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Of a schema, an expression or a grammar, as text.
    pub source_bytes_max: usize,
    /// Levels of a schema.
    pub depth_max: usize,
    /// For one compilation.
    pub time_max: Duration,
    /// Compilations at a time; others wait for them, as long as one may take.
    pub at_once_max: usize,
    /// Compiled grammars that are kept for whoever sends the same.
    pub kept_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            source_bytes_max: 64 << 10,
            depth_max: 64,
            time_max: Duration::from_secs(1),
            at_once_max: 2,
            kept_max: 64,
        }
    }
}

/// llguidance counts what it does; by its own figures these take some hundred milliseconds to compile, and 15 a mask.
pub(crate) fn parser_limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 2_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_items_in_row: 2_000,
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}
