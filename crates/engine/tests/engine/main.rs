//! The engine from outside, on a model without weights: step by step, or on its thread.
mod harness;
mod laws;
mod life;
mod random;
mod scoring;
mod trace;
