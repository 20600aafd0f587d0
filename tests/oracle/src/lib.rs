//! Nothing: the package is its test, `tests/candle.rs`.
