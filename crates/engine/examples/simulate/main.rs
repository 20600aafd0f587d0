//! What a policy does to latencies: the real scheduler and block pool, a model that only costs time,
//! and a clock that does not wait.
//!
//! ```text
//! cargo run --release -p engine --example simulate            # every trace under the default policy
//! cargo run --release -p engine --example simulate -- table   # policies side by side, as in docs/scheduling.md
//! cargo run --release -p engine --example simulate -- run long-mix --seed 7 --pool-tokens 32768
//! ```
mod machine;
mod report;
mod traces;

use std::process::ExitCode;

use engine::{Options, Policy};

use machine::Machine;
use report::Report;
use traces::Trace;

const USAGE: &str = "\
usage: simulate [all | table | run TRACE] [--seed N] [--pool-tokens N]
traces: chat, burst, long-mix, shared, crowd, turns, pressure, ranks";

/// What a run may vary.
struct Run {
    trace: Trace,
    seed: u64,
    /// `None`: the trace's own.
    pool_tokens: Option<usize>,
    prefix_cache: bool,
    policy: Policy,
}

impl Run {
    fn go(&self) -> Report {
        let machine = Machine::new(self.pool_tokens.unwrap_or(self.trace.pool_tokens()));
        let options = Options {
            prefix_cache: self.prefix_cache,
            policy: self.policy.clone(),
            max_waiting: usize::MAX / 2,
            ..Options::default()
        };
        report::simulate(machine, options, self.trace.sessions(self.seed))
    }
}

/// Each differs from the default in what it names.
fn policies() -> Vec<(&'static str, bool, Policy)> {
    let of = |change: fn(&mut Policy)| {
        let mut policy = Policy::default();
        change(&mut policy);
        policy
    };
    vec![
        ("no prefix cache", false, of(|_| ())),
        ("prompts: in order of rank", true, of(|p| p.passed_over_max = 0)),
        ("prompts: the longest waiting every 2nd step", true, of(|p| p.passed_over_max = 1)),
        ("prompts: the longest waiting every 33rd step", true, of(|p| p.passed_over_max = 32)),
        (
            "beside answers: prompt tokens without limit",
            true,
            of(|p| p.prompt_tokens_beside_answers = usize::MAX),
        ),
        ("beside answers: pairs without limit", true, of(|p| p.prompt_pairs_beside_answers = usize::MAX)),
        ("beside answers: 524,288 pairs", true, of(|p| p.prompt_pairs_beside_answers = 1 << 19)),
        ("nobody awaits a prefix", true, of(|p| p.await_prefixes = false)),
        ("overtaken: 16 times at most", true, of(|p| p.overtaken_max = 16)),
        ("overtaken: for ever", true, of(|p| p.overtaken_max = usize::MAX)),
        ("room to grow: none", true, of(|p| p.spare_tokens = 0)),
        ("room to grow: 64 tokens", true, of(|p| p.spare_tokens = 64)),
        ("room to grow: 1,024 tokens", true, of(|p| p.spare_tokens = 1_024)),
        ("room to grow: whole answers", true, of(|p| p.spare_tokens = usize::MAX / 2)),
    ]
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match command(&words.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn command(words: &[&str]) -> Result<(), String> {
    let (mut words, options) =
        words.split_at(words.iter().position(|w| w.starts_with("--")).unwrap_or(words.len()));
    let (mut seed, mut pool_tokens) = (1, None);
    for pair in options.chunks(2) {
        match pair {
            ["--seed", n] => seed = n.parse().map_err(|_| format!("--seed {n}: give a whole number"))?,
            ["--pool-tokens", n] => {
                let tokens = n.parse().map_err(|_| format!("--pool-tokens {n}: give a whole number"))?;
                pool_tokens = Some(tokens);
            }
            other => return Err(format!("{}: no such option, or no value", other[0])),
        }
    }
    if words.is_empty() {
        words = &["all"];
    }
    let run = |trace, (prefix_cache, policy)| Run { trace, seed, pool_tokens, prefix_cache, policy }.go();
    match words {
        ["all"] => {
            println!("{}", Report::header("trace"));
            for trace in Trace::ALL {
                println!("{}", run(trace, (true, Policy::default())).row(trace.name()));
            }
        }
        ["run", name] => {
            let trace = Trace::named(name).ok_or_else(|| format!("{name}: no such trace"))?;
            println!("{}", Report::header("trace"));
            println!("{}", run(trace, (true, Policy::default())).row(trace.name()));
        }
        ["table"] => {
            for trace in Trace::ALL {
                println!("### {}: {}\n\n{}", trace.name(), trace.story(), Report::header("policy"));
                let default = run(trace, (true, Policy::default())).row("");
                println!("{}", default.replacen("|  |", "| default |", 1));
                for (name, prefix_cache, policy) in policies() {
                    let row = run(trace, (prefix_cache, policy)).row("");
                    if row != default {
                        println!("{}", row.replacen("|  |", &format!("| {name} |"), 1));
                    }
                }
                println!();
            }
        }
        other => return Err(format!("{}: no such command", other.join(" "))),
    }
    Ok(())
}
