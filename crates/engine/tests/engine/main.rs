//! The engine from outside, on a model without weights: step by step, or on its thread.
mod constrained;
mod crowd;
mod ends;
mod harness;
mod history;
mod laws;
mod life;
mod random;
mod scoring;
mod sharing;
mod simulation;
mod trace;
mod world;
