//! The scheduler's decisions, as text.
//!
//! A script is a row of parts between bars: sizes; requests `name=prompt+new` (`s` at the end:
//! its prompt is scored too); `-name`, whose client leaves; and `step:` with what the step is
//! expected to do: tokens computed for each row, `name.` for an answer that is complete, `name!`
//! for a failure, `name?` for a refusal, and `[n]` blocks in use after it.

use std::collections::BTreeMap;
use std::sync::mpsc;

use engine::request::{End, Request};
use engine::testing::{FakeRunner, Row, limits};

use crate::harness::{Client, Limits, Rig, request};

fn check(script: &str) {
    check_with(script, |runner| runner);
}

fn check_with(script: &str, configure: impl FnOnce(FakeRunner) -> FakeRunner) {
    let mut parts = script.split('|').map(str::trim);
    let (sender, rows) = mpsc::channel();
    let limits = parse_limits(parts.next().unwrap());
    let mut rig = Rig::new(configure(FakeRunner::new(limits)).report_to(sender));
    let mut clients: BTreeMap<char, Client> = BTreeMap::new();
    let mut played = vec![script.split('|').next().unwrap().trim().to_string()];
    for part in parts {
        if part.starts_with("step:") {
            rig.step();
            played.push(observed(&rows, &mut clients, &rig));
        } else {
            for word in part.split(' ') {
                match word.split_once('=') {
                    Some((name, sizes)) => {
                        let name = name.parse().unwrap();
                        clients.insert(name, rig.submit(parse_request(name, sizes)));
                    }
                    None => drop(clients.remove(&word[1..].parse().unwrap())),
                }
            }
            played.push(part.into());
        }
    }
    assert_eq!(played.join(" | "), script.split_whitespace().collect::<Vec<_>>().join(" "));
    drop(clients);
    rig.finish();
}

fn observed(rows: &mpsc::Receiver<Vec<Row>>, clients: &mut BTreeMap<char, Client>, rig: &Rig) -> String {
    let mut text = String::from("step:");
    for row in rows.try_iter().flatten() {
        text += &format!(" {}+{}", (b'a' + row.first_token as u8) as char, row.n_tokens);
    }
    clients.retain(|name, client| {
        let mark = match &client.listen().end {
            None => return true,
            Some(End::Finished(_)) => '.',
            Some(End::Failed(_)) => '!',
            Some(End::Rejected(_)) => '?',
        };
        text += &format!(" {name}{mark}");
        false
    });
    text + &format!(" [{}]", rig.handle.snapshot().blocks_used)
}

fn parse_limits(part: &str) -> Limits {
    let mut limits = limits();
    let words: Vec<&str> = part.split(' ').collect();
    for pair in words.chunks(2) {
        let number = || pair[1].parse().unwrap();
        match pair[0] {
            "pool" => {
                let (n_blocks, block_len) = pair[1].split_once('x').unwrap();
                (limits.n_blocks, limits.block_len) = (n_blocks.parse().unwrap(), block_len.parse().unwrap());
            }
            "budget" => limits.step_tokens = number(),
            "rows" => limits.step_rows = number(),
            "outputs" => limits.step_outputs = number(),
            "context" => limits.context_len = number(),
            other => panic!("{other}"),
        }
    }
    limits
}

fn parse_request(name: char, sizes: &str) -> Request {
    let scored = sizes.ends_with('s');
    let (prompt_len, new) = sizes.trim_end_matches('s').split_once('+').unwrap();
    let request = request(name as u32 - 'a' as u32, prompt_len.parse().unwrap(), new.parse().unwrap());
    Request { prompt_logprobs: scored.then_some(0), ..request }
}

#[test]
fn prompts_are_cut_and_packed() {
    check(
        "pool 17x4 budget 16 | a=10+2 b=9+2 | step: a+10 b+6 [6] | step: a+1 b+3 a. [3] | step: b+1 b. [0]",
    );
    check("pool 9x4 budget 4 | a=10+1 | step: a+4 [3] | step: a+4 [3] | step: a+2 a. [0] | step: [0]");
    check("pool 17x4 budget 16 | a=3+1 b=4+1 c=5+1 | step: a+3 b+4 c+5 a. b. c. [0]");
}

#[test]
fn a_long_prompt_delays_no_answer_and_no_answer_a_prompt() {
    check(
        "pool 33x4 budget 8 | a=2+9 b=3+9 | step: a+2 b+3 [6] | c=30+1 d=4+1 \
         | step: a+1 b+1 c+5 d+1 [16] | step: a+1 b+1 c+5 d+1 [16] | step: a+1 b+1 c+5 d+1 [16] \
         | step: a+1 b+1 c+5 d+1 d. [14] | step: a+1 b+1 c+6 [14] | step: a+1 b+1 c+4 c. [6]",
    );
}

#[test]
fn a_budget_smaller_than_the_crowd_goes_round() {
    check(
        "pool 33x4 budget 2 rows 3 | a=1+3 b=1+3 c=1+3 | step: a+1 b+1 [3] | step: a+1 c+1 [3] \
         | step: b+1 c+1 [3] | step: a+1 b+1 a. b. [1] | step: c+1 c. [0]",
    );
    check(
        "pool 33x4 budget 1 rows 3 | a=1+3 b=1+2 c=1+2 | step: a+1 [3] | step: b+1 [3] | step: c+1 [3] \
         | step: a+1 [3] | step: b+1 b. [2] | step: c+1 c. [1] | step: a+1 a. [0]",
    );
}

#[test]
fn who_does_not_fit_waits_and_nobody_overtakes() {
    // Seven blocks can be lent; b needs five, c would fit beside a.
    check(
        "pool 8x4 budget 16 | a=8+3 b=16+4 c=2+1 | step: a+8 [3] | step: a+1 [3] | step: a+1 a. [0] \
         | step: b+15 c+1 [6] | step: b+1 c+1 c. [5] | step: b+1 [5] | step: b+1 [5] | step: b+1 b. [0]",
    );
    check("pool 33x4 budget 16 rows 1 | a=1+2 b=1+1 | step: a+1 [1] | step: a+1 a. [0] | step: b+1 b. [0]");
}

#[test]
fn who_can_never_fit_is_refused() {
    check("pool 4x4 budget 16 | a=8+5 b=8+4 | step: b+8 a? [3]");
    check("pool 9x4 budget 16 context 8 | a=8+1 b=7+9 c=8+0 | step: b+7 c+8 a? b. c. [0]");
}

#[test]
fn a_client_that_leaves_frees_its_blocks_within_a_step() {
    check(
        "pool 8x4 budget 16 | a=8+9 b=16+4 | step: a+8 [5] | -a | step: b+16 [5] | step: b+1 [5] \
         | -b | step: [0]",
    );
    check("pool 8x4 budget 16 | a=8+9 b=16+4 c=1+1 | step: a+8 [5] | -b | step: a+1 c+1 c. [5]");
}

#[test]
fn scored_prompts_are_cut_by_the_outputs_that_fit() {
    check(
        "pool 33x4 budget 16 outputs 4 | a=10+2s | step: a+4 [3] | step: a+4 [3] | step: a+2 [3] | step: a+1 a. [0]",
    );
    // The last token of a prompt that is only scored asks for nothing.
    check("pool 33x4 budget 16 outputs 4 | a=5+0s | step: a+5 a. [0]");
    // b's prompt needs no outputs but its last, a takes all: b still gets its turn.
    check(
        "pool 33x4 budget 16 outputs 2 | a=6+1s b=3+1 | step: a+2 b+2 [3] | step: a+1 b+1 b. [2] \
         | step: a+2 [2] | step: a+1 a. [0]",
    );
    check(
        "pool 33x4 budget 16 outputs 1 | a=1+2 b=1+2 | step: a+1 [2] | step: b+1 [2] | step: a+1 a. [1] \
         | step: b+1 b. [0]",
    );
}

#[test]
fn a_fault_ends_those_in_the_step_and_no_others() {
    check_with(
        "pool 8x4 budget 16 | a=8+9 b=16+4 | step: a+8 [5] | step: a! [0] | step: b+16 [5]",
        |runner| runner.fail_at(1),
    );
    check_with("pool 33x4 budget 1 | a=1+9 b=2+1 | step: a+1 [4] | step: b! [3] | step: a+1 [3]", |runner| {
        runner.fail_at(1)
    });
}
