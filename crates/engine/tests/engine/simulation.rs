//! Long histories, each made from one seed: hundreds of requests and everything that can go wrong.
//!
//! `ENGINE_SEED=7` plays the history of one seed and prints it; `ENGINE_SEEDS=100000` plays so many:
//!
//! ```text
//! ENGINE_SEEDS=100000 cargo test --release -p engine --test engine simulation -- --nocapture
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::ends::Seen;
use crate::history::{History, histories};
use crate::world::play;

/// Few enough for everyday: the long form is for a change of scheduler or pool.
const SEEDS: u64 = 200;
const FIRST_SEED: u64 = 1_000;

fn history(seed: u64) -> History {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Default::default(), rng);
    histories(400..800).new_tree(&mut runner).expect("a history").current()
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}; give a number")))
}

fn play_seed(seed: u64, seen: &mut Seen) {
    let history = history(seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| play(&history)));
    match outcome {
        Ok(more) => more.into_iter().for_each(|(what, n)| *seen.entry(what).or_default() += n),
        Err(fault) => {
            eprintln!("ENGINE_SEED={seed} cargo test -p engine --test engine simulation");
            resume_unwind(fault);
        }
    }
}

#[test]
fn long_histories_end_well() {
    let mut seen = Seen::new();
    if let Some(seed) = number("ENGINE_SEED") {
        println!("{:#?}", history(seed));
        return play_seed(seed, &mut seen);
    }
    let seeds = number("ENGINE_SEEDS").unwrap_or(SEEDS);
    (FIRST_SEED..FIRST_SEED + seeds).for_each(|seed| play_seed(seed, &mut seen));
    println!("{seeds} seeds from {FIRST_SEED}: {seen:?}");
    for what in
        ["stopped", "exhausted", "cancelled", "rejected", "expired", "failed", "orphaned", "faults", "panics"]
    {
        assert!(seen.get(what).is_some_and(|&n| n >= seeds / 20), "{what} is not tested: {seen:?}");
    }
    for what in ["preempted", "recomputed", "hit", "copied", "follows", "busy", "steps"] {
        assert!(seen.get(what).is_some_and(|&n| n > seeds), "{what} is not tested: {seen:?}");
    }
}
